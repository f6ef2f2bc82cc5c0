"""`AgentEpisode`: an episode whose turns an agent asks for, over the gateway; the rest is as in any episode.

The environment opens the task, runs the agent and scores what it left; the policy is behind the gateway.
Ends with the agent. Faults keep their class: an engine that fails ends agent and episode (`engine_fault`);
an agent that fails, or is silent for `agent_seconds`, is the environment's (`env_fault`), unless the last
that it heard was that the episode's turns or tokens are used up: that is the policy's doing (`max_turns`,
`max_tokens`).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

from envs.agents.access import ModelAccess
from envs.session import EnvFault, Opening
from rollout.episode import Episode, with_rewards
from rollout.gateway.talk import Talk
from rollout.trajectory import StopReason


class Gate(Protocol):
    """The server in front of the talks (`rollout.gateway.server.Gateway`)."""

    async def open(self, talk: Talk) -> ModelAccess: ...
    async def shut(self, talk: Talk) -> None: ...


@dataclass
class AgentEpisode(Episode):
    """gate: makes the server, or gives the one that there is. branched: told of a segment's name and its
    parent's before it is asked for. agent_seconds: that an agent may be silent while nobody writes for it."""

    gate: Callable[[], Gate] | None = None
    branched: Callable[[str, str], None] = lambda _new, _parent: None
    agent_seconds: float = 300.0
    _silence: asyncio.TimerHandle | None = field(default=None, repr=False)
    _silent: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    async def _converse(self, opening: Opening) -> StopReason:
        if not opening.agent or self.gate is None:
            return await super()._converse(opening)
        talk = Talk(
            id=self.id,
            model=opening.agent,
            renderer=self.renderer,
            config=self.config,
            generate=self.generate,
            sampling=self.sampling,
            branched=self.branched,
            busy=self._busy,
        )
        gate = self.gate()
        access = await gate.open(talk)
        self._busy(False)
        try:
            stop = await self._driven(talk, access)
        finally:
            await gate.shut(talk)
            if self._silence is not None:
                self._silence.cancel()
            self.clock.turn_to("between")
            turns, self.branches = talk.segments()
            self.turns, self.opening = list(turns), talk.opening or self.opening
            self.notes = {**self.notes, **_facts(talk)}
        if not self.turns:
            raise EnvFault(
                "agent", f"{self._where()}: it ended without asking the policy", self.log
            )
        rewards = await self._in_phase("score", self.session.score())
        self.env_rewards, self.turns = dict(rewards), with_rewards(self.turns, rewards)
        return stop

    async def _driven(self, talk: Talk, access: ModelAccess) -> StopReason:
        """Wait for the agent's end, an engine's failure, or a silence that is too long."""
        driving = asyncio.ensure_future(self.session.play(access))
        others = [asyncio.ensure_future(e.wait()) for e in (talk.failed, self._silent)]
        try:
            await asyncio.wait({driving, *others}, return_when=asyncio.FIRST_COMPLETED)
            if talk.fault is not None:
                raise talk.fault
            if not driving.done():
                raise EnvFault(
                    "timeout",
                    f"{self._where()}: no request and no end within {self.agent_seconds:g} s",
                )
            self.log = driving.result()
        except EnvFault as fault:
            self.log = fault.trace
            if not talk.refused:
                raise
        finally:
            for task in (driving, *others):
                task.cancel()
            await asyncio.gather(driving, *others, return_exceptions=True)
        return cast(StopReason, talk.refused or "completed")

    def _busy(self, busy: bool) -> None:
        """The policy begins to write for the agent, or the agent's own time begins."""
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self.clock.turn_to("generate" if busy else "agent")
        if not busy:
            loop = asyncio.get_running_loop()
            self._silence = loop.call_later(self.agent_seconds, self._silent.set)

    def _where(self) -> str:
        return f"environment {self.env!r}, agent"


def _facts(talk: Talk) -> dict[str, str]:
    """Facts of the conversation for the record."""
    found: dict[str, str] = {}
    if talk.overruled:
        found["overruled_sampling"] = ", ".join(sorted(talk.overruled))
    if talk.unknown:
        found["unknown_parameters"] = ", ".join(sorted(talk.unknown))
    if talk.repeats:
        found["repeated_requests"] = str(talk.repeats)
    return found
