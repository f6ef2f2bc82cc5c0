"""Where a request belongs: which tokens it continues, found by its messages alone.

A chat API is stateless: each request brings the whole history. Flows in: messages and tools. Flows out: a
`Place`: the longest history that has been played already, whose token ids are continued, and the messages
that are new. A request that continues the end of a segment goes on with it; any other begins a branch, which
is a segment of its own and keeps the ids of what it has in common with what was played.

Two messages are equal if role, text without outer blanks, and calls with their arguments (as JSON) are:
clients leave out thoughts, write arguments anew (a number that is whole as 2 or as 2.0), and give no text
where there is none.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from envs.message import JsonObject, Message, ToolSchema
from rollout.trajectory import Branch, SegmentStart


@dataclass
class Node:
    """A turn that was played: the first `length` tokens of its segment, ready to be gone on from.

    messages: those of the history up to its answer. continued: True once a request has gone on from it.
    thought: there is one in the segment.
    """

    segment: int
    length: int
    messages: int
    completion_ids: tuple[int, ...]
    turn: int
    thought: bool
    continued: bool = False


@dataclass(frozen=True)
class Place:
    """Where a request belongs. node: what it goes on from; None: its messages are rendered whole.

    kept: ids that are there already. rest: the messages after them. branch: None where the segment goes on.
    begins: why a segment begins: its history was rewritten, or the template drops earlier thoughts here.
    """

    segment: int
    node: Node | None
    kept: tuple[int, ...]
    rest: tuple[Message, ...]
    keys: tuple[bytes, ...]
    branch: Branch | None
    begins: SegmentStart = ""


@dataclass
class _Segment:
    """One token sequence, and the messages that it was made of."""

    keys: tuple[bytes, ...] = ()
    ids: list[int] = field(default_factory=list[int])
    given_up: bool = False


class Conversation:
    """All that one episode's client has said and heard."""

    def __init__(self) -> None:
        self.segments: list[_Segment] = []
        self.nodes: dict[bytes, Node] = {}

    def place(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        forgets: Callable[[Sequence[Message], bool], bool] = lambda _messages, _thought: False,
    ) -> Place:
        """Find where a request belongs, and take that place: of two requests that go on from one turn, the
        second one branches.

        forgets: of messages and whether there was a thought before them, True if the template then writes
        what was before anew: all of it is a new segment's prompt.
        """
        keys = history_keys(messages, tools)
        found = next((node for key in reversed(keys) if (node := self.nodes.get(key))), None)
        rest = tuple(messages[found.messages :] if found else messages)
        kept = tuple(self.segments[found.segment].ids[: found.length]) if found else ()
        forgotten = found is not None and forgets(rest, found.thought)
        if found and not found.continued and not forgotten:
            found.continued = True
            return Place(found.segment, found, kept, rest, keys, None)
        branch = None
        if not all(one.given_up for one in self.segments):
            branch = self._branch(keys, messages, found)
        begins: SegmentStart = "branch" if branch else ""
        if found and forgotten:
            begins = begins if found.continued else "thoughts"
            found, kept, rest = None, (), tuple(messages)
        self.segments.append(_Segment(keys))
        return Place(len(self.segments) - 1, found, kept, rest, keys, branch, begins)

    def give_up(self, place: Place) -> None:
        """Undo `place` for a request that was not answered: what it would have begun was never there."""
        if place.node is not None and place.branch is None:
            place.node.continued = False
        if not self.segments[place.segment].ids:
            self.segments[place.segment] = _Segment(given_up=True)

    def played(
        self,
        place: Place,
        ids: Sequence[int],
        completion_ids: tuple[int, ...],
        answer: Message,
        turn: int,
        *,
        thought: bool = False,
    ) -> None:
        """Note what became of a request. ids: its prompt. answer: the policy's, as the client reads it.
        thought: there is one in it."""
        segment = self.segments[place.segment]
        segment.ids[:] = [*ids, *completion_ids]
        segment.keys = (*place.keys, _next_key(place.keys[-1] if place.keys else b"", answer))
        thought = thought or (place.node is not None and place.node.thought)
        count = len(segment.keys) - 1
        node = Node(place.segment, len(segment.ids), count, completion_ids, turn, thought)
        self.nodes[segment.keys[-1]] = node

    def _branch(
        self, keys: Sequence[bytes], messages: Sequence[Message], found: Node | None
    ) -> Branch:
        """Say from where it branches: the last segment of those with most messages in common."""
        commons = [-1 if one.given_up else _common(keys, one.keys) for one in self.segments]
        parent = found.segment if found else max(range(len(commons)), key=lambda i: (commons[i], i))
        index = commons[parent] - 1
        if index < 0:
            return Branch(len(self.segments), parent, -1, "tools", "other tools")
        if index >= len(messages):
            return Branch(len(self.segments), parent, index, "", "the same messages again")
        first = messages[index]
        return Branch(len(self.segments), parent, index, first.role, first.content[:200])


def history_keys(messages: Sequence[Message], tools: Sequence[ToolSchema]) -> tuple[bytes, ...]:
    """A key for each beginning of a history, that of no message first: equal keys mean equal histories."""
    described = json.dumps([t.as_chat() for t in tools], sort_keys=True)
    keys = [hashlib.sha256(described.encode()).digest()]
    for message in messages:
        keys.append(_next_key(keys[-1], message))
    return tuple(keys)


def _next_key(key: bytes, message: Message) -> bytes:
    calls = [[c.name, _plain(c.arguments)] for c in message.tool_calls]
    said = json.dumps([message.role, message.content.strip(), calls], sort_keys=True)
    return hashlib.sha256(key + said.encode()).digest()


def _plain(value: Any) -> Any:
    """The same JSON value, numbers without a fraction as whole ones: some clients know no others."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(one) for one in cast(list[Any], value)]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in cast(JsonObject, value).items()}
    return value


def _common(a: Sequence[bytes], b: Sequence[bytes]) -> int:
    """How many keys two histories begin with in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
