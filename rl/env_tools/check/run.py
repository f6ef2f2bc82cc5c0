"""`dorado env check`: whether an environment keeps its promises, without a model.

The environment runs in processes of its own, one after the other: in the first everything is looked at, in
the second the same tasks are played with other hashes, in the third on a clock that is ahead. So a crash
or a hang of it is a sentence, and nothing that it left behind outlives the check.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import psutil

from envs.message import JsonObject
from rl.config_file import ConfigError
from rl.env_tools.check.checks import GRACE_SECONDS
from rl.env_tools.check.report import Finding, Report, filled
from rl.env_tools.check.runner import Role, Spec
from rl.env_tools.check.transcript import parting

# An act that holds the interpreter keeps even the watching thread from speaking.
_SILENCE_SECONDS = 10.0
_LOG_LINES = 6
# Until those that are killed have to be gone.
_ENDING_SECONDS = 5.0
_MARK = "DORADO_CHECK"


@dataclass
class Outcome:
    """A runner's outcome. ended: why it ended before it was through, else empty; `doing` its last act."""

    findings: list[Finding] = field(default_factory=list)
    transcript: JsonObject | None = None
    doing: str = "starting"
    bad: str = ""
    ended: str = ""
    log: str = ""


def check(name: str, config: JsonObject | None = None, *, seconds: float = 30.0) -> Report:
    """Check an environment; `seconds` is the deadline of its acts.

    Raises ConfigError where there is no such environment or it does not take these settings.
    """
    began = time.monotonic()
    first = _run(name, config or {}, "plays", seconds)
    if first.bad:
        raise ConfigError(first.bad)
    found = [*first.findings, *_of_end(first)]
    if first.transcript is not None:
        found += _compare(name, config or {}, seconds, first.transcript)
    return filled(name, found, time.monotonic() - began)


def _compare(
    name: str, config: JsonObject, seconds: float, transcript: JsonObject
) -> Iterator[Finding]:
    """Play the same tasks in two other processes; the clock only matters where chance does not."""
    again = _run(name, config, "again", seconds)
    parted = _parted(transcript, again)
    if parted:
        yield Finding(
            "determinism",
            "fail",
            f"in two processes, {parted}; go through sorted(...) in place of a set, use no hash(), and take "
            "all chance from the rng, the seed or task.data",
        )
        return
    yield Finding("determinism", "pass")
    parted = _parted(transcript, _run(name, config, "later", seconds))
    if parted:
        yield Finding(
            "clock",
            "fail",
            f"at two times, {parted}; count turns or calls in place of seconds, and keep a date in task.data",
        )
    else:
        yield Finding("clock", "pass")


def _parted(transcript: JsonObject, other: Outcome) -> str:
    """How another process's transcript differs; empty where it does not."""
    if other.transcript is not None:
        return str(parting(transcript, other.transcript) or "")
    failed = [*other.findings, *_of_end(other)]
    reason = failed[0].sentence if failed else other.bad
    return f"what worked once failed the other time: {reason}"


def _of_end(outcome: Outcome) -> list[Finding]:
    """A finding where the process ended before it was through."""
    if not outcome.ended:
        return []
    kind = "blocking" if outcome.ended.startswith("holds") else "acts"
    return [Finding(kind, "fail", f"{outcome.doing} {outcome.ended}", outcome.log)]


def _run(name: str, config: JsonObject, role: Role, seconds: float) -> Outcome:
    """Run a runner to its end, and end what it left running."""
    outcome, mark = Outcome(), uuid.uuid4().hex
    with (
        tempfile.TemporaryDirectory(prefix="dorado-check-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as log,
    ):
        reading, writing = os.pipe()
        spec = Spec(name, config, role, seconds, folder, writing)
        process = subprocess.Popen(
            # Not from the working directory: its files could stand in for ours.
            [sys.executable, "-P", "-m", "rl.env_tools.check.checks", json.dumps(asdict(spec))],
            env=_environment(role, folder, mark),
            pass_fds=[writing],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        os.close(writing)
        try:
            through = _listen(process, reading, outcome, seconds + GRACE_SECONDS + _SILENCE_SECONDS)
        finally:
            os.close(reading)
            _end(process, mark)
        if not through:
            outcome.ended = outcome.ended or _ending(process.returncode)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            outcome.log = "\n".join(lines[-_LOG_LINES:])
    return outcome


def _environment(role: Role, folder: str, mark: str) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONHASHSEED": "1" if role == "again" else "0",
        "TMPDIR": folder,
        _MARK: mark,
    }


def _listen(
    process: subprocess.Popen[bytes], reading: int, outcome: Outcome, silence: float
) -> bool:
    """Take in what the runner says until it is through (True), ends, or is silent for too long."""
    rest, heard = b"", time.monotonic()
    while time.monotonic() - heard < silence:
        # Asked before: what a process that has ended had to say is in the pipe by then.
        over = process.poll() is not None
        ready, _, _ = select.select([reading], [], [], 0.0 if over else 0.1)
        data = os.read(reading, 65536) if ready else b""
        if data:
            heard = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if _take_in(json.loads(line), outcome):
                    return True
        elif ready or over:
            return False
    outcome.ended = f"holds the interpreter: it said nothing for {silence:.0f} s"
    return False


def _take_in(line: JsonObject, outcome: Outcome) -> bool:
    """One line of a runner; True where it was the last."""
    match line:
        case {"doing": str(act)}:
            outcome.doing = act
        case {"finding": dict(finding)}:
            outcome.findings.append(Finding(**finding))
        case {"transcript": dict(transcript)}:
            outcome.transcript = transcript
        case {"bad": str(sentence)}:
            outcome.bad = sentence
    return "end" in line


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended the process: {signal.Signals(-code).name}"
    return f"ended the process with exit status {code}: let it raise in place of exiting"


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the runner, and every process of its session or with its mark."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    if process.returncode is None:
        process.kill()
        process.wait()
    until = time.monotonic() + _ENDING_SECONDS
    # Again while there are some: one that is ended may just have started another.
    while left := [one for one in psutil.process_iter() if _belongs(one, process.pid, mark)]:
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _belongs(one: psutil.Process, session: int, mark: str) -> bool:
    """True for what the runner has started and has not ended. By its session too: one whose program is just
    being loaded has an empty environment."""
    try:
        ours = os.getsid(one.pid) == session or one.environ().get(_MARK) == mark
        return ours and one.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ProcessLookupError, PermissionError):
        return False
