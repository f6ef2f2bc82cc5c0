"""Looks at plugins before a run: each is imported, made and probed in a process of its own, with a deadline.

In: the tables of a run's environments, or names of environments. Out: a sentence for what cannot work. A
plugin that exits, crashes, or never returns ends that process and nothing of ours. What comes with Dorado is
looked at in this process: it does none of that.
"""

import asyncio
import contextlib
import inspect
import itertools
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import IO, get_args

import psutil

from envs.declaration import mistake_of
from envs.entry_point import TwoRegister, entry_point
from envs.env import Env, Split
from envs.registry import GROUP as ENVS
from envs.registry import UnknownEnv, find_env, split_file
from envs.session import EnvFault, EnvSession, HostFault, Opening
from envs.text import told
from reward.registry import GROUP as JUDGES
from reward.registry import UnknownJudge, find_judge
from rl.config_error import ConfigError
from rl.env_table import EnvTable

# Until an act of a plugin has ended; `deadlines.reset_seconds` of its table, where that is longer. One that
# is at work, on a machine that is busy perhaps, has up to MOST_SECONDS.
ACT_SECONDS = 30.0
MOST_SECONDS = 120.0
# At work is who has had so much of a CPU since the last look.
WORKING_SHARE = 0.03
# That an act is waited for is said after so long.
SAID_SECONDS = 10.0
# Until the process is there and has read what to look at.
START_SECONDS = 120.0
# For the reset of an episode that is only looked at.
OPENING_SECONDS = 10.0
OUR_PACKAGES = ("envs", "reward")
Doing = Callable[[str], None]


@dataclass(frozen=True)
class _OfTable:
    """Looks at what a run's table names, for as long as the table allows."""

    table: EnvTable

    @property
    def seconds(self) -> float:
        return max(ACT_SECONDS, self.table.deadlines.reset_seconds)


@dataclass(frozen=True)
class EnvLook(_OfTable):
    """Imports an environment, makes it with its settings, and asks its `probe`."""

    @property
    def who(self) -> str:
        return f"env {self.table.label!r}"

    @property
    def ours(self) -> bool:
        # One that wraps another one (`aggregate`) is ours where that is ours too.
        names = (self.table.id, self.table.config.get("of", self.table.id))
        return all(_is_ours(ENVS, str(name)) for name in names)

    def look(self, doing: Doing) -> str:
        """Raises ConfigError."""
        doing("importing it")
        with contextlib.suppress(UnknownEnv):  # which `make` says
            find_env(self.table.id)
        doing("making it")
        env = self.table.make()
        doing("its probe()")
        try:
            env.probe()
        except (ValueError, HostFault) as error:
            raise ConfigError(f"{self.who}: {error}") from None
        except Exception as error:
            raise ConfigError(f"{self.who}: probe() raises {told(error)}") from None
        return ""


@dataclass(frozen=True)
class TaskLook(EnvLook):
    """Looks at an environment that is to be played, and draws a task of one that is not ours."""

    def look(self, doing: Doing) -> str:
        """Raises ConfigError."""
        super().look(doing)
        env = self.table.make()
        if mistake := mistake_of(type(env)):
            raise ConfigError(f"{self.who}: {mistake}")
        if not self.ours:
            doing("drawing a task")
            self._draw(env)
        return ""

    def _draw(self, env: Env) -> None:
        """Draw a first task of either split: which of them a run plays, its other settings say."""
        raised = ""
        for split in get_args(Split):
            try:
                if next(iter(env.tasks(split, 0)), None) is not None:
                    return
            except HostFault:  # which may be over when the run draws
                return
            except Exception as error:
                raised = raised or f"tasks({split!r}) raises {told(error)}"
        splits = " and ".join(f"tasks({split!r})" for split in get_args(Split))
        raise ConfigError(f"{self.who}: {raised or f'{splits} give no task'}")


@dataclass(frozen=True)
class JudgeLook(_OfTable):
    """Finds a judge of an environment."""

    judge: str

    @property
    def who(self) -> str:
        return f"env {self.table.label!r}: judges: {self.judge!r}"

    @property
    def ours(self) -> bool:
        return _is_ours(JUDGES, self.judge)

    def look(self, doing: Doing) -> str:
        """Raises ConfigError."""
        doing("importing it")
        try:
            find_judge(self.judge)
        except UnknownJudge as error:
            raise ConfigError(f"env {self.table.label!r}: judges: {error}") from None
        return ""


@dataclass(frozen=True)
class SummaryLook:
    """Reads the first line of what an environment says of itself."""

    name: str
    who: str = ""
    seconds: float = ACT_SECONDS

    @property
    def ours(self) -> bool:
        return _is_ours(ENVS, self.name)

    def look(self, doing: Doing) -> str:
        """Raises ConfigError."""
        doing("importing it")
        try:
            return inspect.cleandoc(find_env(self.name).__doc__ or "").split("\n", 1)[0]
        except UnknownEnv as error:
            raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class OpeningsLook(EnvLook):
    """Opens the first episodes of a seed; the openings are handed over pickled, as hexadecimal digits."""

    seed: int
    count: int

    def look(self, doing: Doing) -> str:
        """The openings up to the first episode that cannot be opened. Raises ConfigError."""
        doing("opening its first episodes")
        return pickle.dumps(asyncio.run(self._opened())).hex()

    async def _opened(self) -> list[Opening]:
        found: list[Opening] = []
        deadlines = self.table.deadlines.record
        # A server that is full now need not be so in the run.
        soon = replace(deadlines, reset_seconds=min(deadlines.reset_seconds, OPENING_SECONDS))
        for task in itertools.islice(self.table.make().tasks("train", self.seed), self.count):
            session = EnvSession(self.table.make(), soon)
            try:
                found.append(await session.open(task))
            except (EnvFault, HostFault):
                break
            finally:
                with contextlib.suppress(EnvFault, HostFault):
                    await session.close()
        return found


Look = EnvLook | JudgeLook | SummaryLook | OpeningsLook


@dataclass(frozen=True)
class Answer:
    """One look's outcome. bad: the sentence for what is wrong, else empty."""

    text: str = ""
    bad: str = ""


def check_plugins(tables: Sequence[EnvTable], *, draw: bool = True) -> None:
    """Look at environments and their judges. Raises ConfigError for the first that cannot work.

    draw: tasks will be drawn of them; an episode that is played again has its own.
    """
    looks: list[Look] = []
    for table in tables:
        looks.append(TaskLook(table) if draw else EnvLook(table))
        looks += [JudgeLook(table, judge) for judge in table.judges]
    with contextlib.closing(answers(looks)) as found:
        for one in found:
            if one.bad:
                raise ConfigError(one.bad)


def openings(tables: Sequence[EnvTable], seed: int, count: int) -> list[list[Opening]]:
    """The first openings of each environment; none of one that cannot be opened, which the run will say."""
    found = answers([OpeningsLook(table, seed, count) for table in tables])
    return [pickle.loads(bytes.fromhex(one.text)) if one.text else [] for one in found]


def summaries(names: Sequence[str]) -> list[str]:
    """Ask each environment for its summary, a line; of one that cannot be used, why."""
    found = answers([SummaryLook(name) for name in names])
    return [
        f"cannot be used: {one.bad.removeprefix(': ')}" if one.bad else one.text for one in found
    ]


def answers(looks: Sequence[Look]) -> Generator[Answer]:
    """The outcome of each look, in order. A look that ends its process costs no other one."""
    foreign = [look for look in looks if not look.ours]
    with contextlib.closing(_elsewhere(foreign)) as found:
        for look in looks:
            yield _answer(look, lambda act: None) if look.ours else next(found)


def _is_ours(group: str, name: str) -> bool:
    """True if looking runs no code of others: it comes with Dorado, or there is nothing to import."""
    module = name.partition(":")[0]
    if split_file(name) is not None:
        return False
    if ":" not in name:
        try:
            point = entry_point(group, name)
        except TwoRegister:
            return True
        if point is None:
            return True
        module = point.module
    return module.partition(".")[0] in OUR_PACKAGES


def _answer(look: Look, doing: Doing) -> Answer:
    try:
        return Answer(text=look.look(doing))
    except ConfigError as error:
        return Answer(bad=str(error))


def _elsewhere(looks: Sequence[Look]) -> Generator[Answer]:
    """Answers of a process that looks; another one goes on after a look that ended it."""
    rest = list(looks)
    while rest:
        with _Looker(rest) as looker:
            while rest:
                answer, goes_on = looker.next(rest.pop(0))
                yield answer
                if not goes_on:
                    break


class _Looker:
    """A process that looks at plugins, one after the other."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.reading, writing = os.pipe()
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the exit)
        self.process = subprocess.Popen(
            # Not from the working directory: its files could stand in for ours.
            [sys.executable, "-P", "-m", "rl.plugin_check", str(writing)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            pass_fds=[writing],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        os.close(writing)
        self.unread = b""
        assert self.process.stdin is not None, "it is a pipe"
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(pickle.dumps(list(looks)))

    def __enter__(self) -> "_Looker":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.reading)
        self.log.close()
        with contextlib.suppress(ProcessLookupError):  # with what the plugin started
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def next(self, look: Look) -> tuple[Answer, bool]:
        """The answer to this look, and whether the process can look on."""
        act, wait = "starting the process that looks at it", _Wait(self.process.pid, START_SECONDS)
        while True:
            line = self._line(wait, f"{look.who}: {act}".removeprefix(": "))
            if line is None:
                ended = self.process.poll()
                how = (
                    f"ended the process {_ending(ended)}{self._last_words()}"
                    if ended is not None
                    else (
                        f"took over {wait.allowed:g} s; if it is only slow, raise its "
                        "deadlines.reset_seconds"
                    )
                )
                return Answer(bad=f"{look.who}: {act} {how}"), False
            if "doing" in line:
                act, wait = line["doing"], _Wait(self.process.pid, look.seconds)
            else:
                return Answer(line["text"], line["bad"]), True

    def _line(self, wait: "_Wait", what: str) -> dict[str, str] | None:
        """The next line; None where the process ends without one, or is waited for in vain.

        what: who is waited for at what.
        """
        while b"\n" not in self.unread:
            # Asked before: what a process that has ended had to say is in the pipe by then.
            over = self.process.poll() is not None
            ready, _, _ = select.select([self.reading], [], [], 0.0 if over else 0.1)
            data = os.read(self.reading, 65536) if ready else b""
            self.unread += data
            if not data and (over or wait.over(what)):
                return None
            if not data and ready:  # it has closed its end, and is about to end
                time.sleep(0.01)
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f" ({said[-1][:200]})" if said else ""


class _Wait:
    """The wait for one act of the process: so many seconds, and more of them while it is at work."""

    def __init__(self, pid: int, seconds: float) -> None:
        self.pid = pid
        self.seconds = self.allowed = seconds
        self.began = self.looked = time.monotonic()
        self.worked = self._work()
        self.said = False

    def over(self, what: str) -> bool:
        """True once it has been long enough; says once that it goes on."""
        now, most = time.monotonic(), max(self.seconds, MOST_SECONDS)
        if now - self.began > SAID_SECONDS and not self.said:
            self.said = True
            print(
                f"{what} has taken {SAID_SECONDS:g} s; it may take {self.seconds:g} s, and {most:g} s if it "
                "is at work",
                file=sys.stderr,
                flush=True,
            )
        if now - self.looked < self.seconds and now - self.began < most:
            return False
        worked = self._work()
        at_work = worked - self.worked >= WORKING_SHARE * (now - self.looked)
        self.looked, self.worked = now, worked
        if at_work and now - self.began >= most:
            self.allowed = most
        return not at_work or now - self.began >= most

    def _work(self) -> float:
        """CPU seconds of the process and of what it has started."""
        with contextlib.suppress(psutil.Error):
            us = psutil.Process(self.pid)
            times = [one.cpu_times() for one in (us, *us.children(recursive=True))]
            return sum(t.user + t.system + t.children_user + t.children_system for t in times)
        return 0.0


def _ending(code: int) -> str:
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with exit status {code}: let it raise in place of exiting"


def _look_at_all(descriptor: int) -> None:
    """The process that looks: looks from standard input, lines of JSON to a descriptor."""
    os.set_inheritable(descriptor, False)
    # Loaded by its name, as whoever asks has it.
    from rl.plugin_check import Answer, Look

    def send(line: dict[str, str]) -> None:
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    looks: list[Look] = pickle.loads(sys.stdin.buffer.read())
    for look in looks:
        act = ""

        def doing(now: str) -> None:
            nonlocal act
            act = now
            send({"doing": now})

        try:
            answer = _answer(look, doing)
        except BaseException as error:  # a plugin can fail in any way
            answer = Answer(bad=f"{look.who}: {act} raises {told(error)}")
        send({"text": answer.text, "bad": answer.bad})
    sys.stdout.flush()
    os._exit(0)  # whatever threads a plugin has left


if __name__ == "__main__":
    _look_at_all(int(sys.argv[1]))
