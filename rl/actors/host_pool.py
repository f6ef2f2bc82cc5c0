"""The environment hosts as one controller sees them, and an episode's session on one of them.

`HostPool` gives each episode the least busy host, and leaves one that died alone until it answers again.
`HostSession` is one episode's environment. Acts travel over `rl.actors.rpc`; Ray starts the hosts and
tells their addresses.
"""

import asyncio
import math
import time
import uuid
from collections.abc import Collection, Sequence
from functools import partial
from typing import cast

from envs.agents.access import ModelAccess
from envs.chat_model import ChatRequest
from envs.env import Task
from envs.handover import NamedRewards
from envs.message import ToolCall
from envs.model_user import AskModel
from envs.session import HostFault, Opening, StepResult
from rl.actors.actor_method import Handle, end_actor
from rl.actors.env_host import EnvHost
from rl.actors.rpc import Address, Load, PeerLost, RpcClient, address_of
from rl.env_table import EnvTable
from rl.nodes.deadline import within

# Seconds that a host may take beyond an environment's own deadline before it counts as stuck.
GRACE_SECONDS = 10.0
PING_SECONDS = 5.0
# Seconds for Ray to tell a host's address, once it has started. A caller waits under its own deadline.
ADDRESS_SECONDS = 60.0
# A host is asked for its load when it has not told it for so many seconds.
LOAD_SECONDS = 2.0


class HostPool:
    """The hosts as one controller sees them."""

    def __init__(self, hosts: Sequence[Handle[EnvHost]], name: str = "") -> None:
        """name: the controller's; one that was started anew closes what the one before it left open."""
        self.hosts = list(hosts)
        name = name or uuid.uuid4().hex
        self.clients = [
            RpcClient(partial(_address, host), name, partial(self._hear, index))
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
        """True if a host answers; then its load is known."""
        try:
            await within(self.clients[index].ask("ping", ""), PING_SECONDS)
        except (TimeoutError, PeerLost):
            return False
        return True

    def report(self, index: int, *, stuck: bool) -> None:
        """A host died, or does not answer any more; Ray starts it anew."""
        if index in self.down:
            return
        if stuck:
            end_actor(self.hosts[index], restart=True)
        self.down[index] = asyncio.create_task(self._recover(index))

    async def _recover(self, index: int) -> None:
        while not await self._answers(index):
            await asyncio.sleep(0.2)
        del self.down[index]


async def _address(host: Handle[EnvHost]) -> Address:
    """Where a host is now. Raises PeerLost."""
    return await address_of(host.address, ADDRESS_SECONDS)


class HostSession:
    """An environment on a host, as an episode sees it (`rollout.episode.Session`)."""

    def __init__(
        self, pool: HostPool, id: str, table: EnvTable, ask: AskModel | None = None
    ) -> None:
        """ask: the model that plays the user, where one does (`table.user`)."""
        self.pool = pool
        self.id = id
        self.table = table
        self.ask = ask
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
                return cast(Opening, await self._ask(limit, "open", self.table.label, task))
            except HostFault:
                if self.retries == self.table.retries:
                    raise
                # The host may be well, and something that the environment needs beside it away.
                self.pool.clients[self.index].tell("close", self.id)
                self.retries += 1
                failed.add(self.index)

    async def step(self, text: str, calls: tuple[ToolCall, ...]) -> StepResult:
        limit = self.table.deadlines.tool_seconds * max(1, len(calls))
        return cast(StepResult, await self._ask(limit, "step", text, calls))

    async def play(self, access: ModelAccess) -> str:
        return cast(str, await self._ask(math.inf, "play", access))

    async def score(self) -> NamedRewards:
        limit = self.table.deadlines.score_seconds
        return cast(NamedRewards, await self._ask(limit, "score"))

    async def close(self) -> None:
        """The episode does not wait for its end: the host runs it under a deadline of its own."""
        if self.index is not None:
            self.pool.clients[self.index].tell("close", self.id)

    async def _ask(self, limit: float, method: str, *arguments: object) -> object:
        """An act's result; what it asks its user on the way is answered here. Raises UserFault."""
        found = await self._once(limit, method, *arguments)
        while isinstance(found, ChatRequest):
            assert self.ask is not None, "a host asks where the table names a user"
            found = await self._once(limit, "resume", await self.ask(found))
        return found

    async def _once(self, limit: float, method: str, *arguments: object) -> object:
        assert self.index is not None, "open() comes first"
        where = f"the host of environment {self.table.label!r} ({self.host})"
        act = self.pool.clients[self.index].ask(method, self.id, *arguments)
        try:
            return await within(act, limit + GRACE_SECONDS)
        except TimeoutError:
            # The host itself does not answer, say because an environment blocks its event loop.
            # Its other sessions are lost with it.
            self.pool.report(self.index, stuck=True)
            raise HostFault(
                f"{where} did not answer within {limit + GRACE_SECONDS:g} s and was started anew"
            ) from None
        except PeerLost as lost:
            self.pool.report(self.index, stuck=False)
            raise HostFault(f"{where} {lost}") from None
        except KeyError:
            sentence = f"{where} has lost the episode: it was started anew, or its connection was"
            raise HostFault(sentence) from None
