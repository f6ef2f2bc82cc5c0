"""`run_episode`: one task played to its end, by any engine against any environment.

Consumes a task, an engine's `generate`, an environment session. Produces a `Trajectory`, whatever
happens: a fault of environment, engine or host ends the episode with its own stop reason and is never
a reward of 0. Every await stamps its phase and stands under the episode's deadline.
"""

import asyncio
import time
import traceback
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from envs.agents.access import ModelAccess
from envs.chat_model import ChatAnswer, ChatModel, ChatRequest, ModelFault
from envs.deadline import counting, paused
from envs.env import Task
from envs.handover import NamedRewards
from envs.message import Message, ToolCall, ToolSchema
from envs.session import EnvFault, HostFault, Opening, StepResult
from envs.text import encodable, told
from envs.user import UserFault
from rollout.config import EpisodeConfig
from rollout.context import Asked, Before, Context, ContextRendering, letters_of
from rollout.engine import Completion, EngineFault, Generate, Request, Sampling
from rollout.reading import Written
from rollout.trajectory import Branch, Phase, StopReason, Trajectory, Turn

T = TypeVar("T")


# Characters for each token of `episode.max_tokens` that a turn's observations may have, and an opening: but
# for long runs of blanks no text has so many to a token.
MOST_LETTERS, MOST_OPENING_LETTERS = 16, 64
# From so many on, the tokenizer takes milliseconds.
LONG_LETTERS = 20_000


class NoRoom(Exception):
    """The opening leaves the policy no token to write."""


class Session(Protocol):
    """An environment's side of an episode: in this process (`envs.session`) or on a host."""

    async def open(self, task: Task) -> Opening: ...
    async def step(self, text: str, calls: tuple[ToolCall, ...]) -> StepResult: ...
    async def play(self, access: ModelAccess) -> str: ...
    async def score(self) -> NamedRewards: ...
    async def close(self) -> None: ...


class Rendering(ContextRendering, Protocol):
    """Messages to tokens and back (`rollout.renderer.Renderer`)."""

    def read(self, completion: Sequence[int], tools: Sequence[ToolSchema]) -> Written: ...
    def text(self, ids: Sequence[int]) -> str: ...


# The phases of an episode; the judges' comes from its controller.
PHASES = frozenset(
    (
        "created",
        "reset",
        "between",
        "generate",
        "tool",
        "reply",
        "user",
        "agent",
        "render",
        "score",
        "judge",
        "close",
    )
)


@dataclass
class PhaseClock:
    """Which phase an episode is in, since when, and all phases before."""

    phases: list[Phase] = field(default_factory=list)
    current: str = "created"
    since: float = field(default_factory=time.time)
    created: float = field(default_factory=time.time)
    acts: int = 1

    @contextmanager
    def phase(self, name: str, acts: int = 1):
        """Stamp what is awaited inside; a phase in another one interrupts it.

        name: of PHASES; acts: tool calls, which have a deadline each.
        """
        outer, outer_acts = self.current, self.acts
        self.turn_to(name, acts)
        try:
            yield
        finally:
            self.turn_to("between" if outer == "created" else outer, outer_acts)

    def spent(self, name: str) -> float:
        """Seconds in phases of this name that have ended."""
        return sum(phase.seconds for phase in self.phases if phase.name == name)

    def turn_to(self, name: str, acts: int = 1) -> None:
        """End the phase in progress and begin another, where somebody else says what comes next."""
        now = time.time()
        if self.current not in ("created", "between"):
            self.phases.append(Phase(self.current, self.since, now - self.since))
        self.current, self.since, self.acts = name, now, acts


@dataclass
class Episode:
    """An episode in progress; `run` plays it once."""

    id: str
    group: str
    env: str
    task: Task
    session: Session
    generate: Generate
    renderer: Rendering
    config: EpisodeConfig
    # How its tokens are drawn; None: as the engine's are.
    sampling: Sampling | None = None
    # The frozen model that plays the user, where one does, and how long the episode waits for it in all.
    user: ChatModel | None = None
    user_seconds: float = 240.0
    clock: PhaseClock = field(default_factory=PhaseClock)
    opening: tuple[Message, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    turns: list[Turn] = field(default_factory=list)
    env_rewards: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()
    log: str = ""

    async def run(self) -> Trajectory:
        """Play to the end. Raises only CancelledError."""
        fault = trace = ""
        stop: StopReason
        try:
            async with asyncio.timeout(self.config.max_seconds) as deadline:
                with counting(deadline):
                    stop = await self._play()
        except TimeoutError:
            phase = self.clock.phases[-1].name if self.clock.phases else "start"
            stop = "timeout"
            fault = f"no end within {self.config.max_seconds:g} s; last phase {phase!r}"
        except EnvFault as error:
            stop, fault, trace = "env_fault", str(error), error.trace
        except EngineFault as error:
            stop, fault = "engine_fault", str(error)
        except HostFault as error:
            stop, fault = "host_fault", str(error)
        except UserFault as error:
            stop, fault = "user_fault", str(error)
        except NoRoom as error:
            stop, fault = "no_room", str(error)
        except Exception as error:
            stop, fault = "crash", told(error)
            trace = traceback.format_exc()
        finally:
            await self._close()
        return Trajectory(
            id=self.id,
            group=self.group,
            env=self.env,
            task=self.task,
            opening=self.opening,
            turns=tuple(self.turns),
            stop_reason=stop,
            env_rewards=self.env_rewards,
            phases=tuple(self.clock.phases),
            fault=encodable(fault),
            trace=encodable(trace),
            notes=self.notes,
            branches=self.branches,
            log=self.log,
        )

    async def ask_user(self, request: ChatRequest) -> ChatAnswer:
        """Ask the user's model for the environment; its clocks and the episode's stand still. Raises
        UserFault."""
        assert self.user is not None, "an environment asks where a model plays its user"
        left = self.user_seconds - self.clock.spent("user")
        try:
            with self.clock.phase("user"), paused():
                async with asyncio.timeout(max(0.0, left)):
                    return await self.user.ask(request)
        except ModelFault as fault:
            raise UserFault(str(fault)) from None
        except TimeoutError:
            raise UserFault(
                f"model {self.user.name!r}: as the user it has taken {self.user_seconds:g} s of the episode"
            ) from None

    async def _play(self) -> StopReason:
        opening = await self._in_phase("reset", self.session.open(self.task))
        self.opening, self.tools, self.notes = opening.messages, opening.tools, opening.notes
        return await self._converse(opening)

    async def _converse(self, opening: Opening) -> StopReason:
        if opening.agent:
            raise EnvFault(
                "agent", f"environment {self.env!r} is played by an agent, in a run only"
            )
        letters = letters_of(opening.messages, opening.tools)
        if letters > MOST_OPENING_LETTERS * self.config.max_tokens:
            raise NoRoom(
                f"environment {self.env!r}: an opening of {letters:,} characters leaves no room in "
                f"episode.max_tokens ({self.config.max_tokens})"
            )
        context = Context(self.config, self.renderer, opening.messages, opening.tools)
        before = await self._rendered(context.begin())
        if before.length >= self.config.max_tokens:
            raise NoRoom(
                f"environment {self.env!r}: an opening of {before.length} tokens leaves no room in "
                f"episode.max_tokens ({self.config.max_tokens})"
            )
        stop: StopReason = "max_turns"
        for index in range(self.config.max_turns):
            room = self.config.max_tokens - before.length
            if room <= 0:
                stop = "max_tokens"
                break
            turn, written, done = await self._turn(index, before, room)
            self.turns.append(turn)
            if done:
                stop = "completed"
                break
            if turn.finish_reason == "length":
                stop = "max_tokens"
                break
            context.wrote(before, turn.completion_ids, written, turn.observations)
            before = await self._rendered(context.next(before))
            if (shorter := context.full(before)) is not None:
                before = await self._rendered(shorter)
        rewards = await self._in_phase("score", self.session.score())
        self.env_rewards, self.turns = dict(rewards), with_rewards(self.turns, rewards)
        return stop

    async def _turn(self, index: int, before: Before, room: int) -> tuple[Turn, Written, bool]:
        """One completion, what it says, and True where the environment's answer to it ended the episode."""
        limit = min(room, self.config.max_completion_tokens)
        # The last token of the turn before is computed in this one.
        routed = max(0, len(before.context) - 1)
        context = before.context + before.prompt
        id = f"{self.id}/{index}"
        request = Request(
            id,
            self.id,
            context,
            limit,
            num_routed=routed,
            sampling=self.sampling,
            begins=bool(before.begins),
        )
        completion = await self._in_phase("generate", self.generate(request))
        if completion.finish_reason == "abort":
            raise EngineFault(f"engine {completion.engine} aborted request {request.id}")
        completion = stopped(completion, self.sampling, self.renderer.text)
        written = self.renderer.read(completion.token_ids, self.tools)
        result = StepResult((), done=False)
        if completion.finish_reason != "stop":  # cut off: neither an answer nor a call
            written = replace(written, answer="", calls=(), malformed="")
        elif before.summary:  # which the policy writes for itself
            written = replace(written, calls=(), malformed="")
        elif written.malformed:
            said = Message("tool", f"error: {written.malformed}")
            result = StepResult((said,), done=False)
        else:
            phase = "tool" if written.calls else "reply"
            act = self.session.step(written.answer, written.calls)
            result = await self._in_phase(phase, act, max(1, len(written.calls)))
        turn = Turn(
            prompt_ids=before.prompt,
            completion_ids=completion.token_ids,
            rollout_logprobs=completion.logprobs,
            versions=completion.versions,
            finish_reason=completion.finish_reason,
            engine=completion.engine,
            text=written.answer,
            calls=written.calls,
            malformed=bool(written.malformed),
            bad_calls=result.bad_calls,
            observations=bounded(result.messages, MOST_LETTERS * self.config.max_tokens),
            thought=written.reasoning,
            begins=before.begins,
            summary=before.summary,
            segment=(self.turns[-1].segment if self.turns else 0) + bool(before.begins),
            routing=completion.routing,
        )
        return turn, written, result.done

    async def _rendered(self, asked: Asked) -> Before:
        """Render the context of a turn; a long text is made into tokens beside the event loop."""
        if asked.letters < LONG_LETTERS:
            return asked.before(asked.render())
        return asked.before(await self._in_phase("render", asyncio.to_thread(asked.render)))

    async def _in_phase(self, name: str, act: Awaitable[T], acts: int = 1) -> T:
        with self.clock.phase(name, acts):
            return await act

    async def _close(self) -> None:
        """Close the environment; what fails here is on record and changes no outcome."""
        try:
            await self._in_phase("close", self.session.close())
        except Exception as error:
            self.clock.phases.append(Phase(f"close failed: {error}", time.time(), 0.0))


def with_rewards(turns: Sequence[Turn], rewards: NamedRewards) -> list[Turn]:
    """The turns with the rewards that they have earned; the environment counts those that it has seen."""
    seen = [
        i
        for i, t in enumerate(turns)
        if t.finish_reason == "stop" and not t.malformed and not t.summary
    ]
    earned = {seen[number]: parts for number, parts in rewards.by_turn.items()}
    return [replace(t, rewards=earned[i]) if i in earned else t for i, t in enumerate(turns)]


def stopped(
    completion: Completion, sampling: Sampling | None, text: Callable[[Sequence[int]], str]
) -> Completion:
    """The completion up to the token that completes the first of the texts that end a turn; all of it where
    there is none. text: of ids. What an engine wrote beyond is dropped: no later token was drawn from it."""
    stops = sampling.stop if sampling else ()
    ids = completion.token_ids

    def holds(count: int) -> bool:
        written = text(ids[:count])
        return any(stop in written for stop in stops)

    if not stops or not holds(len(ids)):
        return completion
    return completion.cut(bisect_left(range(len(ids) + 1), True, key=holds))


def bounded(messages: Sequence[Message], letters: int) -> tuple[Message, ...]:
    """The messages, cut where all together have more than `letters` characters; each cut says so."""
    kept: list[Message] = []
    for message in messages:
        more = len(message.content) - letters
        if more > 0:
            cut = f"{message.content[:letters]}\n[{more:,} characters more]"
            message = replace(message, content=cut)
        letters = max(0, -more)
        kept.append(message)
    return tuple(kept)
