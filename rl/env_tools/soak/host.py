"""An environment host that is watched: how long its acts take, and what stays when episodes have ended.

It is the host of a run (`rl.actors.env_host.EnvHost`) with a clock around each act, and a census that is
taken while no episode is in progress.
"""

import asyncio
import ctypes
import gc
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from envs.env import Env, Task
from envs.handover import NamedRewards
from envs.message import ToolCall
from envs.session import Opening, StepResult
from rl.actors.env_host import EnvHost
from rl.env_table import EnvTable

# Durations that one host keeps per act.
_KEPT = 200_000


@dataclass(frozen=True)
class Census:
    """One host process while no episode is in progress.

    sessions: episodes it still holds. environments: instances that are still reachable. tasks: of asyncio.
    processes: its children. files: open files and sockets, of which Ray holds some. threads: all of them;
    tool_threads: those that run a blocking tool. temporary: paths in its temporary folder. memory_mib:
    resident, after unused memory was given back.
    """

    pid: int
    sessions: int
    environments: int
    tasks: int
    processes: int
    files: int
    threads: int
    tool_threads: int
    temporary: tuple[str, ...]
    memory_mib: float


class SoakHost(EnvHost):
    """An `EnvHost` that can be measured."""

    def __init__(self, tables: Sequence[EnvTable], log: str, temporary: str) -> None:
        """temporary: a folder in which each process of this host gets one of its own, as its $TMPDIR."""
        self.temporary = Path(temporary) / str(os.getpid())
        self.temporary.mkdir(parents=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.temporary)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        super().__init__(tables, log)

    async def open(self, session: str, label: str, task: Task) -> Opening:
        with self._timed("reset"):
            return await super().open(session, label, task)

    async def step(self, session: str, text: str, calls: tuple[ToolCall, ...]) -> StepResult:
        with self._timed("tool" if calls else "reply", max(1, len(calls))):
            return await super().step(session, text, calls)

    async def score(self, session: str) -> NamedRewards:
        with self._timed("score"):
            return await super().score(session)

    async def close(self, session: str) -> None:
        with self._timed("close"):
            await super().close(session)

    async def process_id(self) -> int:
        """The id of the process that is this host now."""
        return os.getpid()

    async def take_times(self) -> dict[str, list[float]]:
        """Seconds of each act since the last call of this, by phase."""
        taken, self.seconds = dict(self.seconds), defaultdict(list)
        return taken

    async def census(self) -> Census:
        """Count what there is now. Unused memory is collected and given back first."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        if trim is not None:
            trim(0)
        process = psutil.Process()
        return Census(
            pid=process.pid,
            sessions=len(self.sessions),
            environments=sum(issubclass(type(o), Env) for o in gc.get_objects())
            - len(self.patterns),
            tasks=len(asyncio.all_tasks()) - 1,
            processes=len(process.children(recursive=True)),
            files=process.num_fds(),
            threads=process.num_threads(),
            tool_threads=sum(t.name == "dorado-tool" for t in threading.enumerate()),
            temporary=tuple(sorted(map(str, self.temporary.rglob("*")))),
            memory_mib=process.memory_info().rss / 2**20,
        )

    @contextmanager
    def _timed(self, phase: str, acts: int = 1) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if len(self.seconds[phase]) < _KEPT:
                self.seconds[phase].append((time.perf_counter() - start) / acts)
