"""Environment hosts: processes that run environment instances, and how an episode reaches them.

`EnvHost` lives in a Ray actor. A controller's `HostPool` gives each episode the least busy host and leaves
one that died alone until it answers again; `HostSession` is one episode's environment on a host. What
episodes ask of a host goes through a lane (`rl.host_lane`), many acts in one call.
"""

import asyncio
import gc
import sys
import time
import traceback
import uuid
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from envs.env import Task
from envs.message import ToolCall
from envs.session import Deadlines, EnvFault, EnvSession, HostFault, Opening, StepResult
from rl.check import make_env
from rl.config import EnvTable
from rl.deadline import within
from rl.host_lane import Answers, HostEnd, Lane, Load
from rl.process import log_to

# A host may take this much longer than an environment's own deadline before it counts as stuck.
GRACE_SECONDS = 10.0
PING_SECONDS = 5.0
# A host that has said nothing of its load for so long is asked. CPU use is measured over a second.
LOAD_SECONDS = 2.0
CPU_SECONDS = 1.0


class EnvHost:
    """Runs environment instances, one per session."""

    def __init__(self, tables: Sequence[EnvTable], log: str) -> None:
        log_to(log)
        # What is loaded stays: the collector need not walk it while tool calls wait.
        gc.collect()
        gc.freeze()
        self.tables = {table.label: table for table in tables}
        self.patterns = {table.label: make_env(table) for table in tables}
        self.sessions: dict[str, EnvSession] = {}
        self.lanes: dict[str, tuple[int, HostEnd]] = {}
        self.owners: dict[str, str] = {}  # session -> lane
        self.closing: set[asyncio.Task[None]] = set()
        self.node = ray.util.get_node_ip_address()
        self.idle_cpus = 0.0
        self.measured = 0.0

    async def exchange(self, lane: str, born: int, acts: tuple[tuple[int, bytes], ...]) -> Answers:
        """A call of a controller's lane: acts to begin, results to bring back.

        A lane of a controller that was started anew closes what the one before it has left open; its own
        acts do not wait for that.
        """
        known, end = self.lanes.get(lane, (0, None))
        if end is None or known < born:
            left = [session for session, owner in self.owners.items() if owner == lane]
            end = HostEnd(partial(self._play, lane))
            self.lanes[lane] = (born, end)
            for session in left:
                self.closing.add(task := asyncio.create_task(self.close(session)))
                task.add_done_callback(self.closing.discard)
        return Answers(await end.exchange(acts), self.load())

    async def _play(self, lane: str, method: str, session: str, *arguments: Any) -> Any:
        if method == "open":
            self.owners[session] = lane
        return await getattr(self, method)(session, *arguments)

    async def open(self, session: str, label: str, task: Task) -> Opening:
        """Start an environment. Raises EnvFault."""
        pattern = self.patterns[label]
        deadlines = Deadlines(**self.tables[label].deadlines.model_dump())
        try:
            env = type(pattern)(pattern.config)
        except (Exception, SystemExit) as error:  # the latter would end the host's event loop
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
        self.owners.pop(session, None)
        held = self.sessions.pop(session, None)
        if held is None:
            return
        try:
            await held.close()
        except EnvFault as fault:
            print(f"{session}: {fault}\n{fault.trace}", file=sys.stderr, flush=True)
        except HostFault as fault:
            print(f"{session}: {fault}", file=sys.stderr, flush=True)

    async def ping(self) -> Load:
        """Answers while the event loop is alive."""
        return self.load()

    def load(self) -> Load:
        """How busy this host and its node are."""
        if (now := time.monotonic()) - self.measured >= CPU_SECONDS:
            self.measured = now
            self.idle_cpus = (1 - psutil.cpu_percent() / 100) * (psutil.cpu_count() or 1)
        return Load(self.node, len(self.sessions), self.idle_cpus)


class HostPool:
    """The hosts as one controller sees them."""

    def __init__(self, hosts: Sequence[Any], name: str = "") -> None:
        """name: the controller's; one that was started anew closes what the one before it left open."""
        self.hosts = list(hosts)
        name, born = name or uuid.uuid4().hex, time.time_ns()
        self.lanes = [
            Lane(host, name, born, partial(self._hear, index)) for index, host in enumerate(hosts)
        ]
        self.sessions = [0] * len(self.hosts)  # as last heard, and those opened since
        self.nodes = [""] * len(self.hosts)
        self.idle_cpus: dict[str, float] = {}
        self.heard = [time.monotonic()] * len(self.hosts)
        self.down: dict[int, asyncio.Task[None]] = {}
        self.asking: set[asyncio.Task[bool]] = set()
        self.turn = 0

    async def acquire(self, avoid: Collection[int] = ()) -> int:
        """The least busy host that is up; waits where all are down (under the episode's deadline).

        Busy: sessions per idle CPU of its node. Hosts of `avoid` are taken only where no other is up.
        """
        while len(self.down) == len(self.hosts):
            await asyncio.wait(self.down.values(), return_when=asyncio.FIRST_COMPLETED)
        self._ask_silent_hosts()
        up = [index for index in range(len(self.hosts)) if index not in self.down]
        up = [index for index in up if index not in avoid] or up
        count, last = len(self.hosts), self.turn
        self.turn = min(up, key=lambda index: (self._busy(index), (index - last - 1) % count))
        self.sessions[self.turn] += 1
        return self.turn

    def _busy(self, index: int) -> float:
        unheard = max(self.idle_cpus.values(), default=0.0)
        idle = self.idle_cpus.get(self.nodes[index], unheard)
        # Half a CPU more: on a node without any, a host with fewer sessions is still the better one.
        return (self.sessions[index] + 1) / (0.5 + idle)

    def _hear(self, index: int, load: Load) -> None:
        self.sessions[index] = load.sessions
        self.nodes[index] = load.node
        self.idle_cpus[load.node] = load.idle_cpus
        self.heard[index] = time.monotonic()

    def _ask_silent_hosts(self) -> None:
        for index, heard in enumerate(self.heard):
            if time.monotonic() - heard > LOAD_SECONDS and index not in self.down:
                self.heard[index] = time.monotonic()
                self.asking.add(task := asyncio.create_task(self._answers(index)))
                task.add_done_callback(self.asking.discard)

    async def _answers(self, index: int) -> bool:
        """Whether a host answers; then its load is known."""
        try:
            self._hear(index, await within(self.hosts[index].ping.remote(), PING_SECONDS))
        except (TimeoutError, RayError):  # dead, out of reach, or killed for its memory
            return False
        return True

    def report(self, index: int, *, stuck: bool) -> None:
        """A host died, or does not answer any more; Ray starts it anew."""
        if index in self.down:
            return
        if stuck:
            ray.kill(self.hosts[index], no_restart=False)
        self.down[index] = asyncio.create_task(self._recover(index))

    async def _recover(self, index: int) -> None:
        while not await self._answers(index):
            await asyncio.sleep(0.2)
        del self.down[index]


class HostSession:
    """An environment on a host, as an episode sees it (`rollout.episode.Session`)."""

    def __init__(self, pool: HostPool, id: str, table: EnvTable) -> None:
        self.pool = pool
        self.id = id
        self.table = table
        self.index: int | None = None
        self.retries = 0

    @property
    def host(self) -> str:
        """The host's name; "" before there is one."""
        return "" if self.index is None else f"host-{self.index}"

    async def open(self, task: Task) -> Opening:
        """The opening. Before it the policy has done nothing: a host that fails is replaced by another one,
        as often as the environment's `retries` say. An environment that fails is not."""
        failed: set[int] = set()
        while True:
            self.index = await self.pool.acquire(failed)
            try:
                limit = self.table.deadlines.reset_seconds
                return await self._ask(limit, "open", self.table.label, task)
            except HostFault:
                if self.retries == self.table.retries:
                    raise
                # The host may be well, and something that the environment needs beside it away.
                self.pool.lanes[self.index].tell("close", self.id)
                self.retries += 1
                failed.add(self.index)

    async def step(self, text: str, calls: tuple[ToolCall, ...]) -> StepResult:
        limit = self.table.deadlines.tool_seconds * max(1, len(calls))
        return await self._ask(limit, "step", text, calls)

    async def score(self) -> dict[str, float]:
        return await self._ask(self.table.deadlines.score_seconds, "score")

    async def close(self) -> None:
        """The episode does not wait for its end: the host runs it under a deadline of its own."""
        if self.index is not None:
            self.pool.lanes[self.index].tell("close", self.id)

    async def _ask(self, limit: float, method: str, *arguments: Any) -> Any:
        assert self.index is not None, "open() comes first"
        where = f"the host of environment {self.table.label!r}"
        act = self.pool.lanes[self.index].ask(method, self.id, *arguments)
        try:
            return await within(act, limit + GRACE_SECONDS)
        except TimeoutError:
            # The host itself does not answer, say because an environment blocks its event loop.
            # Its other sessions are lost with it.
            self.pool.report(self.index, stuck=True)
            raise HostFault(
                f"{where} did not answer within {limit + GRACE_SECONDS:g} s and was started anew"
            ) from None
        except (
            RayError
        ):  # not of a death alone: of a host that ran out of memory, Ray says just that
            self.pool.report(self.index, stuck=False)
            raise HostFault(f"{where} died") from None
        except KeyError:
            raise HostFault(f"{where} was started anew and has lost the episode") from None
