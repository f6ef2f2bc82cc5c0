"""`EnvHost`: a process that runs environment instances, one per session, in a Ray actor.

Controllers reach it through `rl.actors.host_pool`, over connections of `rl.actors.rpc`.
"""

import asyncio
import gc
import sys
import time
import traceback
from collections.abc import Coroutine, Sequence
from typing import Any

import psutil

from envs.agents.access import ModelAccess
from envs.chat_model import ChatAnswer
from envs.env import Task
from envs.handover import NamedRewards
from envs.message import ToolCall
from envs.model_user import ModelUser
from envs.process_end import refuse_ends
from envs.session import EnvFault, EnvSession, HostFault, Opening, StepResult
from envs.text import told
from rl.actors.actor_method import actor_method
from rl.actors.heartbeat import Heartbeat, own_heartbeat
from rl.actors.rpc import Address, Load, RpcServer
from rl.actors.suspended_act import SuspendedAct
from rl.env_table import EnvTable
from rl.nodes.nodes import own_address
from rl.nodes.process import log_to

# Seconds over which CPU use is measured.
CPU_SECONDS = 1.0


class EnvHost:
    """Runs environment instances, one per session."""

    def __init__(self, tables: Sequence[EnvTable], log: str) -> None:
        log_to(log)
        refuse_ends()
        # What is loaded stays: the collector need not walk it while tool calls wait.
        gc.collect()
        gc.freeze()
        self.tables = {table.label: table for table in tables}
        self.patterns = {table.label: table.make() for table in tables}
        self.sessions: dict[str, EnvSession] = {}
        # Of the sessions whose user a model plays.
        self.suspended: dict[str, SuspendedAct] = {}
        self.server = RpcServer(self._play, self._close_all, self.load)
        self.node = own_address()
        self.idle_cpus = 0.0
        self.measured = 0.0

    @actor_method
    async def address(self) -> Address:
        """Where clients are taken: on the address that Ray reaches this node at. Raises OSError."""
        return await self.server.address(self.node)

    async def _play(self, owner: str, method: str, session: str, *arguments: Any) -> object:
        session = f"{owner}/{session}"
        match method:
            case "open":
                label, task = arguments
                if self.tables[label].user is not None:
                    self.suspended[session] = SuspendedAct()
                return await self._run(session, self.open(session, label, task))
            case "step":
                return await self._run(session, self.step(session, *arguments))
            case "play":
                return await self._run(session, self.play(session, *arguments))
            case "score":
                return await self._run(session, self.score(session))
            case "resume":
                return await self.resume(session, *arguments)
            case "close":
                return await self.close(session)
            case "ping":
                return await self.ping(session)
            case _:
                raise ValueError(f"{method}: a host has no such act")

    async def _run(self, session: str, act: Coroutine[Any, Any, object]) -> object:
        """An act's result; where a model plays the user, it may be a question to them (`SuspendedAct`)."""
        suspended = self.suspended.get(session)
        return await (act if suspended is None else suspended.run(act))

    async def _close_all(self, owner: str) -> None:
        """Close what a connection that is gone has left open."""
        left = [session for session in self.sessions if session.startswith(f"{owner}/")]
        await asyncio.gather(*map(self.close, left))

    async def open(self, session: str, label: str, task: Task) -> Opening:
        """Start an environment. Raises EnvFault."""
        pattern = self.patterns[label]
        deadlines = self.tables[label].deadlines.record
        try:
            user, suspended = self.tables[label].user, self.suspended.get(session)
            player = ModelUser(suspended.ask, user.record) if user and suspended else None
            held = EnvSession(type(pattern)(pattern.config), deadlines, player)
        except BaseException as error:  # SystemExit, say, would end the host's event loop
            sentence = f"environment {label!r}, creation: {told(error)}"
            raise EnvFault("reset", sentence, traceback.format_exc()) from None
        self.sessions[session] = held
        return await self.sessions[session].open(task)

    async def step(self, session: str, text: str, calls: tuple[ToolCall, ...]) -> StepResult:
        """One turn of the policy. Raises EnvFault."""
        return await self.sessions[session].step(text, calls)

    async def play(self, session: str, access: ModelAccess) -> str:
        """An agent plays to its end. Raises EnvFault."""
        return await self.sessions[session].play(access)

    async def score(self, session: str) -> NamedRewards:
        """The environment's rewards. Raises EnvFault."""
        return await self.sessions[session].score()

    async def resume(self, session: str, answer: ChatAnswer) -> object:
        """The act that has asked the user goes on with the answer. Raises EnvFault, UserFault."""
        return await self.suspended[session].resume(answer)

    async def close(self, session: str) -> None:
        """Close and forget. A fault here changes no outcome; it goes to the host's log."""
        held = self.sessions.pop(session, None)
        self.suspended.pop(session, None)
        if held is None:
            return
        try:
            await held.close()
        except EnvFault as fault:
            print(f"{session}: {fault}\n{fault.trace}", file=sys.stderr, flush=True)
        except HostFault as fault:
            print(f"{session}: {fault}", file=sys.stderr, flush=True)

    @actor_method
    async def ping(self, session: str = "") -> None:
        """Answers while the event loop is alive."""

    @actor_method
    async def heartbeat(self) -> Heartbeat:
        """Answer that this actor is there."""
        return own_heartbeat()

    def load(self) -> Load:
        """How busy this host and its node are."""
        if (now := time.monotonic()) - self.measured >= CPU_SECONDS:
            self.measured = now
            self.idle_cpus = (1 - psutil.cpu_percent() / 100) * (psutil.cpu_count() or 1)
        return Load(self.node, len(self.sessions), self.idle_cpus)
