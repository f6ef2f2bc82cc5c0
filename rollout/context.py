"""Contexts: what the policy sees of its own episode, as segments that are each exact in their tokens.

A segment begins with a rendered prompt and goes on token by token. The next one begins where the template
drops earlier thoughts, or where `episode.context` says that the context is full: after a summary that the
policy wrote itself ("summary"), with the opening alone ("discard"), or with the one and, after many turns,
the other ("hybrid"; LongCat-Flash-Thinking-2601, section 3.3.2). Flows in: what each turn wrote and what came
back. Flows out: what stands before the next turn. The environment is told of none of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from envs.message import Message, ToolSchema
from rollout.config import EpisodeConfig
from rollout.reading import Written
from rollout.trajectory import SegmentStart

MARK_LETTERS = 8
SUMMARY_HEADING = "Your summary of the work so far:"


class ContextRendering(Protocol):
    """The part of a renderer that a context needs (`rollout.renderer.Renderer`)."""

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]: ...
    def suffix(self, messages: Sequence[Message], completion: Sequence[int]) -> list[int]: ...
    def forgets(self, messages: Sequence[Message], thought: bool) -> bool: ...


@dataclass(frozen=True)
class Before:
    """A turn's context: new ids, and why a segment begins with them ("": they continue one).

    context: the ids of the segment before the new ones. summary: the turn is to be a summary.
    """

    prompt: tuple[int, ...]
    context: tuple[int, ...] = ()
    begins: SegmentStart = ""
    summary: bool = False

    @property
    def length(self) -> int:
        """Tokens that the policy sees."""
        return len(self.context) + len(self.prompt)


@dataclass(frozen=True)
class Asked:
    """Something to render: `render` makes its ids, from so many characters."""

    letters: int
    render: Callable[[], list[int]]
    context: tuple[int, ...] = ()
    begins: SegmentStart = ""
    summary: bool = False

    def before(self, ids: Sequence[int]) -> Before:
        """Return the context of the next turn, now that the ids are there."""
        return Before(tuple(ids), self.context, self.begins, self.summary)


class Context:
    """The context of one episode, turn after turn."""

    def __init__(
        self,
        config: EpisodeConfig,
        renderer: ContextRendering,
        opening: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> None:
        self.config, self.renderer = config, renderer
        self.opening, self.tools = tuple(opening), tuple(tools)
        # Of the segment: its messages, and its ids up to the end of the last turn.
        self.messages: list[Message] = list(opening)
        self.ids: tuple[int, ...] = ()
        self._last: tuple[int, ...] = ()
        self._said: tuple[Message, ...] = ()
        # True if the segment has a thought in it.
        self._thought = False
        # Turns since the context was last discarded, and how often it was.
        self.turns, self.discards = 0, 0

    def begin(self) -> Asked:
        """The opening, of the first segment."""
        return self._rendered(self.opening)

    def wrote(
        self, before: Before, completion: Sequence[int], written: Written, said: Sequence[Message]
    ) -> None:
        """Note a turn: its ids, what it wrote, and what the environment said to it."""
        self._last = tuple(completion)
        self.ids = (*before.context, *before.prompt, *self._last)
        self.turns += 1
        answer = Message("assistant", written.answer, written.calls, reasoning=written.reasoning)
        self._thought = written.thought or (self._thought and not before.begins)
        self._said = tuple(said)
        if before.summary:
            self.messages = _with_summary(self.opening, written.answer)
        else:
            self.messages += [answer, *said]

    def next(self, before: Before) -> Asked:
        """Ask for the context of the turn after the one that `wrote` noted."""
        if before.summary:
            return self._rendered(self.messages, "summary")
        if self.renderer.forgets(self._said, self._thought):
            return self._rendered(self.messages, "thoughts")
        return self._continued(self._said)

    def full(self, asked: Before) -> Asked | None:
        """Ask for another context in place of `asked`, where that one is too full."""
        config = self.config
        if config.context == "append" or asked.length <= config.context_limit:
            return None
        if asked.begins in ("summary", "discard"):  # nothing is left to leave out
            return None
        turns = config.discard_turns
        used_up = turns is not None and self.turns >= turns * (1 + self.discards)
        if config.context == "discard" or used_up:
            self.turns, self.discards = 0, self.discards + 1
            self.messages = list(self.opening)
            return self._rendered(self.opening, "discard")
        said = _with_request(self._said, config.summary_prompt)
        if asked.begins:
            kept = self.messages[: len(self.messages) - len(self._said)]
            return replace(self._rendered([*kept, *said], asked.begins), summary=True)
        return replace(self._continued(said), summary=True)

    def _continued(self, said: Sequence[Message]) -> Asked:
        last = self._last
        letters = letters_of(said)
        return Asked(letters, lambda: self.renderer.suffix(said, last), self.ids)

    def _rendered(self, messages: Sequence[Message], begins: SegmentStart = "") -> Asked:
        shown = tuple(messages)
        letters = letters_of(shown, self.tools)
        return Asked(letters, lambda: self.renderer.prompt(shown, self.tools), begins=begins)


def letters_of(messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> int:
    """Characters of messages, calls and thoughts in them too, and of tools as the policy is told of them; a
    message counts as MARK_LETTERS more, which stand for its marks."""
    described = sum(len(t.name) + len(t.description) + len(str(t.parameters)) for t in tools)
    said = sum(len(m.content) + len(m.reasoning) + MARK_LETTERS for m in messages)
    called = sum(len(c.name) + len(str(c.arguments)) for m in messages for c in m.tool_calls)
    return said + called + described


def _with_request(said: Sequence[Message], request: str) -> tuple[Message, ...]:
    """Messages with the request for a summary at their end: many templates want turns to alternate."""
    if not said:
        return (Message("user", request),)
    return (*said[:-1], replace(said[-1], content=f"{said[-1].content}\n\n{request}"))


def _with_summary(opening: Sequence[Message], summary: str) -> list[Message]:
    """The opening with a summary at its end, in the user's last message where that ends the opening."""
    note = f"{SUMMARY_HEADING}\n{summary}"
    if opening and opening[-1].role == "user":
        last = replace(opening[-1], content=f"{opening[-1].content}\n\n{note}")
        return [*opening[:-1], last]
    return [*opening, Message("user", note)]
