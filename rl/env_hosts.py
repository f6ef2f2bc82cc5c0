"""Environment hosts: processes that run environment instances, and how an episode reaches them.

`EnvHost` lives in a Ray actor. A controller's `HostPool` gives each episode the least busy host and leaves
one that died alone until it answers again; `HostSession` is one episode's environment on a host. What
episodes ask of a host goes through a lane (`rl.host_lane`); Ray starts hosts, and tells where they are.
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
from ray.exceptions import RayActorError, RayError

from envs.env import Task
from envs.message import ToolCall
from envs.session import EnvFault, EnvSession, HostFault, Opening, StepResult
from rl.check import make_env
from rl.config import EnvTable
from rl.deadline import within
from rl.host_lane import Address, HostEnd, HostLost, Lane, Load
from rl.process import first_line, log_to
from rl.pulse import Pulse, own_pulse

# A host may take this much longer than an environment's own deadline before it counts as stuck.
GRACE_SECONDS = 10.0
PING_SECONDS = 5.0
# Ray tells an address once the host has started. Who waits for an act gives up by a deadline of his own.
ADDRESS_SECONDS = 60.0
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
        self.end = HostEnd(self._play, self._close_all, self.load)
        self.node = ray.util.get_node_ip_address()
        self.idle_cpus = 0.0
        self.measured = 0.0

    async def address(self) -> Address:
        """Where lanes are taken: on the address that Ray reaches this node at. Raises OSError."""
        return await self.end.address(self.node)

    async def _play(self, owner: str, method: str, session: str, *arguments: Any) -> Any:
        return await getattr(self, method)(f"{owner}/{session}", *arguments)

    async def _close_all(self, owner: str) -> None:
        """What a connection that is gone has left open."""
        left = [session for session in self.sessions if session.startswith(f"{owner}/")]
        await asyncio.gather(*map(self.close, left))

    async def open(self, session: str, label: str, task: Task) -> Opening:
        """Start an environment. Raises EnvFault."""
        pattern = self.patterns[label]
        deadlines = self.tables[label].deadlines.record
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
        held = self.sessions.pop(session, None)
        if held is None:
            return
        try:
            await held.close()
        except EnvFault as fault:
            print(f"{session}: {fault}\n{fault.trace}", file=sys.stderr, flush=True)
        except HostFault as fault:
            print(f"{session}: {fault}", file=sys.stderr, flush=True)

    async def ping(self, session: str = "") -> None:
        """Answers while the event loop is alive."""

    async def pulse(self) -> Pulse:
        """That it is there."""
        return own_pulse()

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
        name = name or uuid.uuid4().hex
        self.lanes = [
            Lane(partial(_address, host), name, partial(self._hear, index))
            for index, host in enumerate(hosts)
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
            await within(self.lanes[index].ask("ping", ""), PING_SECONDS)
        except (TimeoutError, HostLost):
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


async def _address(host: Any) -> Address:
    """Where a host is now. Raises HostLost."""
    try:
        return await within(host.address.remote(), ADDRESS_SECONDS)
    except RayActorError:
        raise HostLost("died") from None
    except RayError as error:
        raise HostLost(f"cannot be connected to: {first_line(error)}") from None
    except TimeoutError:
        raise HostLost(f"did not tell its address within {ADDRESS_SECONDS:g} s") from None


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
        where = f"the host of environment {self.table.label!r} ({self.host})"
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
        except HostLost as lost:
            self.pool.report(self.index, stuck=False)
            raise HostFault(f"{where} {lost}") from None
        except KeyError:
            sentence = f"{where} has lost the episode: it was started anew, or its connection was"
            raise HostFault(sentence) from None
