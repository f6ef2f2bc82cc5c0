"""`dorado ...` as a process, what it prints, and what is left of it; and the files of a run folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, ClassVar

import psutil

ROOT = Path(__file__).parent.parent


class Command:
    """`dorado ...` in a folder of its own; every process it starts carries a mark to be found by."""

    # All that were started in this process, for a test that fails half-way.
    started: ClassVar[list["Command"]] = []

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        """variables: further ones of its environment."""
        self.mark = uuid.uuid4().hex
        self.folder = folder
        environment = os.environ | {
            "DORADO_TEST_MARK": self.mark,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "WANDB_MODE": "disabled",
            **variables,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        self.started.append(self)

    def wait(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=570)
        return self.process.returncode, output

    def read_until(self, text: str) -> str:
        """Read lines until one holds `text`; at the end of output, return what there was."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                break
        return "".join(lines)

    def end(self) -> None:
        """Kill what is left of it; where the test came to its own end that is nothing."""
        for process in self._alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def left_behind(self) -> list[str]:
        """Processes with the mark that are still there ten seconds after the end."""
        deadline = time.monotonic() + 10
        while (alive := self._alive()) and time.monotonic() < deadline:
            psutil.wait_procs(alive, timeout=0.5)
        return [" ".join(p.cmdline())[:120] for p in self._alive()]

    def kill(self, log: Path | None, what: str = "") -> None:
        """Kill the actor that writes this log, and what it has started; or what has `what` in its name, with
        None as log wherever it writes to."""
        self.signal(log, what, signal.SIGKILL)

    def signal(self, log: Path | None, what: str, number: signal.Signals) -> None:
        """Send a signal as `kill` does."""
        victims = [p for p in self._alive() if log is None or _writes_to(p, log.resolve())]
        victims = [p for p in victims if what in " ".join(p.cmdline())]
        assert victims
        for victim in victims:
            victim.send_signal(number)

    def await_end(self, log: Path) -> None:
        """Until the rest of what writes this log has ended too: it would keep memory and device."""
        give_up = time.monotonic() + 30
        while rest := [p for p in self._alive() if _writes_to(p, log.resolve())]:
            assert time.monotonic() < give_up, [p.cmdline() for p in rest]
            time.sleep(0.1)

    def _alive(self) -> list[psutil.Process]:
        return marked(self.mark)


def marked(mark: str) -> list[psutil.Process]:
    """Find the processes that carry a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DORADO_TEST_MARK") == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _writes_to(process: psutil.Process, log: Path) -> bool:
    try:
        return Path(f"/proc/{process.pid}/fd/1").resolve() == log
    except OSError:
        return False


def lines(file: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
