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
from functools import partial
from typing import Protocol, TypeVar

from envs.env import Task
from envs.handover import NamedRewards
from envs.message import Message, ToolCall, ToolSchema
from envs.session import EnvFault, HostFault, Opening, StepResult
from envs.text import encodable, told
from rollout.config import EpisodeConfig
from rollout.engine import Completion, EngineFault, Generate, Request, Sampling
from rollout.tool_format import MalformedCall
from rollout.trajectory import Phase, StopReason, Trajectory, Turn

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
    async def score(self) -> NamedRewards: ...
    async def close(self) -> None: ...


class Rendering(Protocol):
    """Messages to tokens and back (`rollout.renderer.Renderer`)."""

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]: ...
    def suffix(self, messages: Sequence[Message], completion: Sequence[int]) -> list[int]: ...
    def parse(self, completion: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]: ...
    def split(self, completion: Sequence[int]) -> tuple[str, str]: ...
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
        """Stamp what is awaited inside; name: of PHASES; acts: tool calls, which have a deadline each."""
        start = time.time()
        self.current, self.since, self.acts = name, start, acts
        try:
            yield
        finally:
            self.phases.append(Phase(name, start, time.time() - start))
            self.current, self.since = "between", time.time()


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
    clock: PhaseClock = field(default_factory=PhaseClock)
    opening: tuple[Message, ...] = ()
    turns: list[Turn] = field(default_factory=list)
    env_rewards: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    async def run(self) -> Trajectory:
        """Play to the end. Raises only CancelledError."""
        fault = trace = ""
        stop: StopReason
        try:
            async with asyncio.timeout(self.config.max_seconds):
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
        )

    async def _play(self) -> StopReason:
        opening = await self._in_phase("reset", self.session.open(self.task))
        self.opening, self.notes = opening.messages, opening.notes
        letters = _letters(opening.messages, opening.tools)
        if letters > MOST_OPENING_LETTERS * self.config.max_tokens:
            raise NoRoom(
                f"environment {self.env!r}: an opening of {letters:,} characters leaves no room in "
                f"episode.max_tokens ({self.config.max_tokens})"
            )
        prompt = await self._rendered(
            letters, lambda: self.renderer.prompt(opening.messages, opening.tools)
        )
        if len(prompt) >= self.config.max_tokens:
            raise NoRoom(
                f"environment {self.env!r}: an opening of {len(prompt)} tokens leaves no room in "
                f"episode.max_tokens ({self.config.max_tokens})"
            )
        context: tuple[int, ...] = ()
        stop: StopReason = "max_turns"
        for index in range(self.config.max_turns):
            context += prompt
            room = self.config.max_tokens - len(context)
            if room <= 0:
                stop = "max_tokens"
                break
            turn, done = await self._turn(index, context, prompt, room)
            self.turns.append(turn)
            if done:
                stop = "completed"
                break
            if turn.finish_reason == "length":
                stop = "max_tokens"
                break
            context += turn.completion_ids
            suffix = partial(self.renderer.suffix, turn.observations, turn.completion_ids)
            prompt = await self._rendered(_letters(turn.observations), suffix)
        rewards = await self._in_phase("score", self.session.score())
        self.env_rewards, self.turns = dict(rewards), with_rewards(self.turns, rewards)
        return stop

    async def _turn(
        self, index: int, context: tuple[int, ...], prompt: tuple[int, ...], room: int
    ) -> tuple[Turn, bool]:
        """One completion and the environment's answer to it; True where that ended the episode."""
        limit = min(room, self.config.max_completion_tokens)
        # The last token of the turn before is computed in this one.
        routed = max(0, len(context) - len(prompt) - 1)
        id = f"{self.id}/{index}"
        request = Request(id, self.id, context, limit, num_routed=routed, sampling=self.sampling)
        completion = await self._in_phase("generate", self.generate(request))
        if completion.finish_reason == "abort":
            raise EngineFault(f"engine {completion.engine} aborted request {request.id}")
        completion = stopped(completion, self.sampling, self.renderer.text)
        text, calls, malformed = "", (), False
        thought, rest = self.renderer.split(completion.token_ids)
        result = StepResult((), done=False)
        if completion.finish_reason == "stop":
            try:
                text, calls = self.renderer.parse(completion.token_ids)
                phase = "tool" if calls else "reply"
                act = self.session.step(text, calls)
                result = await self._in_phase(phase, act, max(1, len(calls)))
            except MalformedCall as error:
                malformed = True
                text = rest
                result = StepResult((Message("tool", f"error: {error}"),), done=False)
        turn = Turn(
            prompt_ids=prompt,
            completion_ids=completion.token_ids,
            rollout_logprobs=completion.logprobs,
            versions=completion.versions,
            finish_reason=completion.finish_reason,
            engine=completion.engine,
            text=text,
            calls=calls,
            malformed=malformed,
            bad_calls=result.bad_calls,
            observations=bounded(result.messages, MOST_LETTERS * self.config.max_tokens),
            thought=thought,
            routing=completion.routing,
        )
        return turn, result.done

    async def _rendered(self, letters: int, render: Callable[[], list[int]]) -> tuple[int, ...]:
        """The ids of a text of so many characters; a long one is made into tokens beside the event loop."""
        if letters < LONG_LETTERS:
            return tuple(render())
        return tuple(await self._in_phase("render", asyncio.to_thread(render)))

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
    seen = [i for i, t in enumerate(turns) if t.finish_reason == "stop" and not t.malformed]
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


def _letters(messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> int:
    """Characters of messages, and of tools as the policy is told of them."""
    described = sum(len(t.name) + len(t.description) + len(str(t.parameters)) for t in tools)
    return sum(len(message.content) for message in messages) + described
