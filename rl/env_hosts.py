"""Environment hosts: processes that run environment instances, and how an episode reaches them.

`EnvHost` lives in a Ray actor. A controller's `HostPool` spreads episodes over the hosts and leaves one
that died alone until it answers again; `HostSession` is one episode's environment on a host.
"""

import asyncio
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

from envs.env import Task
from envs.message import ToolCall
from envs.session import Deadlines, EnvFault, EnvSession, HostFault, Opening, StepResult
from rl.check import make_env
from rl.config import EnvTable
from rl.deadline import within
from rl.process import cause, log_to

T = TypeVar("T")
# A host may take this much longer than an environment's own deadline before it counts as stuck.
GRACE_SECONDS = 10.0
PING_SECONDS = 5.0


class EnvHost:
    """Runs environment instances, one per session."""

    def __init__(self, tables: Sequence[EnvTable], log: str) -> None:
        log_to(log)
        self.tables = {table.label: table for table in tables}
        self.patterns = {table.label: make_env(table) for table in tables}
        self.sessions: dict[str, EnvSession] = {}

    async def open(self, session: str, label: str, task: Task) -> Opening:
        """Start an environment. Raises EnvFault."""
        pattern = self.patterns[label]
        deadlines = Deadlines(**self.tables[label].deadlines.model_dump())
        try:
            env = type(pattern)(pattern.config)
        except Exception as error:
            sentence = f"environment {label!r}, creation: {type(error).__name__}: {error}"
            raise EnvFault("reset", sentence, traceback.format_exc()) from None
        self.sessions[session] = EnvSession(env, deadlines)
        return await self.sessions[session].open(task)

    async def step(self, session: str, text: str, calls: tuple[ToolCall, ...]) -> StepResult:
        """One turn of the policy. Raises EnvFault."""
        return await self.sessions[session].step(text, calls)

    async def score(self, session: str) -> dict[str, float]:
        """The environment's rewards. Raises EnvFault."""
        return await self.sessions[session].score()

    async def close(self, session: str) -> None:
        """Close and forget. A fault here changes no outcome; it goes to the host's log."""
        held = self.sessions.pop(session, None)
        if held is None:
            return
        try:
            await held.close()
        except EnvFault as fault:
            print(f"{session}: {fault}\n{fault.trace}", file=sys.stderr, flush=True)
        except HostFault as fault:
            print(f"{session}: {fault}", file=sys.stderr, flush=True)

    async def ping(self) -> None:
        """Answers while the event loop is alive."""


class HostPool:
    """The hosts as one controller sees them."""

    def __init__(self, hosts: Sequence[Any]) -> None:
        self.hosts = list(hosts)
        self.down: dict[int, asyncio.Task[None]] = {}
        self.turn = 0

    async def acquire(self) -> int:
        """The next host that is up; waits where all are down (under the episode's deadline)."""
        while len(self.down) == len(self.hosts):
            await asyncio.wait(self.down.values(), return_when=asyncio.FIRST_COMPLETED)
        while True:
            self.turn = (self.turn + 1) % len(self.hosts)
            if self.turn not in self.down:
                return self.turn

    def report(self, index: int, *, stuck: bool) -> None:
        """A host died, or does not answer any more; Ray starts it anew."""
        if index in self.down:
            return
        if stuck:
            ray.kill(self.hosts[index], no_restart=False)
        self.down[index] = asyncio.create_task(self._recover(index))

    async def _recover(self, index: int) -> None:
        while True:
            try:
                await within(self.hosts[index].ping.remote(), PING_SECONDS)
            except (TimeoutError, RayActorError):
                await asyncio.sleep(0.2)
                continue
            del self.down[index]
            return


class HostSession:
    """An environment on a host, as an episode sees it (`rollout.episode.Session`)."""

    def __init__(self, pool: HostPool, id: str, table: EnvTable) -> None:
        self.pool = pool
        self.id = id
        self.table = table
        self.index: int | None = None

    @property
    def host(self) -> str:
        """The host's name; "" before there is one."""
        return "" if self.index is None else f"host-{self.index}"

    async def open(self, task: Task) -> Opening:
        self.index = await self.pool.acquire()
        limit = self.table.deadlines.reset_seconds
        return await self._ask(lambda h: h.open.remote(self.id, self.table.label, task), limit)

    async def step(self, text: str, calls: tuple[ToolCall, ...]) -> StepResult:
        limit = self.table.deadlines.tool_seconds * max(1, len(calls))
        return await self._ask(lambda h: h.step.remote(self.id, text, calls), limit)

    async def score(self) -> dict[str, float]:
        limit = self.table.deadlines.score_seconds
        return await self._ask(lambda h: h.score.remote(self.id), limit)

    async def close(self) -> None:
        """The episode does not wait for its end: the host runs it under a deadline of its own."""
        if self.index is not None:
            self.pool.hosts[self.index].close.remote(self.id)

    async def _ask(self, act: Callable[[Any], Awaitable[T]], limit: float) -> T:
        assert self.index is not None, "open() comes first"
        where = f"the host of environment {self.table.label!r}"
        try:
            return await within(act(self.pool.hosts[self.index]), limit + GRACE_SECONDS)
        except TimeoutError:
            # The host itself does not answer, say because an environment blocks its event loop.
            # Its other sessions are lost with it.
            self.pool.report(self.index, stuck=True)
            raise HostFault(
                f"{where} did not answer within {limit + GRACE_SECONDS:g} s and was started anew"
            ) from None
        except (EnvFault, HostFault) as error:
            # A server that the environment needs may be gone while the host itself is well.
            raise cause(error) from None
        except RayActorError:
            self.pool.report(self.index, stuck=False)
            raise HostFault(f"{where} died") from None
        except KeyError:
            raise HostFault(f"{where} was started anew and has lost the episode") from None
