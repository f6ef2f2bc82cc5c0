"""`Talk`: one episode that an agent plays over an API, from its first request to its turns.

Consumes requests (`Ask`) in any number at once; produces answers, and turns of engine ids. Waits for the
engine, under the episode's deadline, which its owner holds. Refuses requests beyond the episode's limits
(`ApiError`), which is the policy's doing, and all of them once an engine has failed, which is not.

The same request again, while the first one is being answered or within `AGAIN_SECONDS` of its answer, is
taken for a client's retry: it gets the same answer, and nothing is sampled twice.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from envs.dynamic_tool import resolve
from envs.message import JsonObject, Message, ToolCall, ToolSchema
from envs.text import told
from rollout.config import EpisodeConfig
from rollout.context import letters_of
from rollout.engine import Completion, EngineFault, Generate, Request, Sampling
from rollout.episode import LONG_LETTERS, MOST_OPENING_LETTERS, Rendering, stopped
from rollout.gateway.api_error import ApiError
from rollout.gateway.conversation import Conversation, Place
from rollout.gateway.exchange import Answer, Ask, Call, Finish
from rollout.reading import Written, flaw_of
from rollout.trajectory import Branch, Turn, segment_id

AGAIN_SECONDS = 30.0
MOST_AT_ONCE = 64
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


@dataclass
class Talk:
    """One episode's side of the gateway.

    model: the name that it serves the policy under. branched: told of the name of a segment before its first
    request, and of its parent's. busy: told when the first request begins and when the last one ends.
    refused: the limit that the last request ran into; "" where it was answered. closed: the episode is over.
    """

    id: str
    model: str
    renderer: Rendering
    config: EpisodeConfig
    generate: Generate
    sampling: Sampling | None
    branched: Callable[[str, str], None] = lambda _new, _parent: None
    busy: Callable[[bool], None] = lambda _: None
    conversation: Conversation = field(default_factory=Conversation)
    turns: list[Turn] = field(default_factory=list[Turn])
    opening: tuple[Message, ...] = ()
    branches: list[Branch] = field(default_factory=list[Branch])
    refused: str = ""
    fault: Exception | None = None
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    overruled: set[str] = field(default_factory=set[str])
    unknown: set[str] = field(default_factory=set[str])
    repeats: int = 0
    closed: bool = False
    _count: int = 0  # turns that are used up or being written
    _number: int = 0  # requests so far, by which each has a name of its own
    _known: dict[str, tuple[asyncio.Task[Answer], float]] = field(default_factory=dict[str, Any])
    _running: set[asyncio.Task[Answer]] = field(default_factory=set[Any])

    async def answer(self, ask: Ask) -> Answer:
        """The policy's turn. Raises ApiError.

        A client that goes away ends nothing: what the policy writes is a turn, and a retry gets it.
        """
        self._forget()
        known = self._known.get(ask.key)
        if known is not None:
            self.repeats += 1
            return await _heard_of(known[0])
        if len(self._running) >= MOST_AT_ONCE:
            raise ApiError("too_many", f"an episode may have {MOST_AT_ONCE} requests at once")
        self._check(ask)
        # Counted here: of requests that come at once, none begins before the next one is checked.
        self._count += 1
        self._number += 1
        task = asyncio.create_task(self._turn(ask, self._number - 1))
        self._known[ask.key] = (task, float("inf"))
        self._running.add(task)
        if len(self._running) == 1:
            self.busy(True)
        task.add_done_callback(lambda done: self._ended(ask.key, done))
        return await _heard_of(task)

    async def count(self, ask: Ask) -> int:
        """Tokens of a request whose messages are rendered whole; it is no turn. Raises ApiError."""
        self._check_size(ask)
        try:
            return len(await asyncio.to_thread(self.renderer.prompt, ask.messages, ask.tools))
        except Exception as error:  # a chat template may refuse any history
            raise _refused(error) from None

    async def close(self) -> None:
        """Give up what is being written: the agent is gone, and nobody reads it. Nothing begins after it."""
        self.closed = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    def _ended(self, key: str, task: asyncio.Task[Answer]) -> None:
        self._running.discard(task)
        if task.cancelled() or task.exception() is not None:
            del self._known[key]
        else:
            self._known[key] = (task, time.monotonic() + AGAIN_SECONDS)
        if not self._running:
            self.busy(False)

    def _forget(self) -> None:
        now = time.monotonic()
        for key in [key for key, (_, until) in self._known.items() if until < now]:
            del self._known[key]

    def _check(self, ask: Ask) -> None:
        """Raises ApiError for a request that cannot begin."""
        if self.closed:
            raise ApiError("secret", "Incorrect API key provided: its episode is over.")
        if self.fault is not None:
            raise ApiError("failed", f"the episode has failed: {self.fault}")
        if self._count >= self.config.max_turns:
            self.refused = "max_turns"
            raise ApiError(
                "spent", f"the episode's {self.config.max_turns} turns are used up (max_turns)"
            )
        try:
            self._check_size(ask)
        except ApiError as error:
            self.refused = "max_tokens" if error.kind == "too_long" else self.refused
            raise

    def _check_size(self, ask: Ask) -> None:
        if not ask.messages:
            raise ApiError("invalid", "'messages' has to have at least one message", "messages")
        if letters_of(ask.messages, ask.tools) > MOST_OPENING_LETTERS * self.config.max_tokens:
            raise self._too_long("more characters than any text of so many tokens has")

    def _too_long(self, how: str) -> ApiError:
        return ApiError(
            "too_long",
            f"This model's maximum context length is {self.config.max_tokens} tokens. However, your messages "
            f"have {how}. Please reduce the length of the messages.",
            "messages",
        )

    async def _turn(self, ask: Ask, number: int) -> Answer:
        """One turn of the policy. number: of the request. Raises ApiError."""
        self.overruled.update(ask.wants)
        self.unknown.update(ask.unknown)
        try:
            place = self.conversation.place(ask.messages, ask.tools, self.renderer.forgets)
        except Exception as error:  # a chat template may refuse any history
            self._count -= 1
            raise _refused(error) from None
        try:
            ids, prompt_length = await self._prompt(place, ask)
            room = self.config.max_tokens - len(ids)
            if room <= 0:
                self.refused = "max_tokens"
                raise self._too_long(f"{len(ids)} tokens")
            completion = await self._completion(place, ids, room, number, ask)
        except BaseException as error:
            if isinstance(error, ApiError) and error.kind != "failed":
                self._count -= 1
            self.conversation.give_up(place)
            raise
        self.refused = ""
        return self._answered(place, ask, ids, prompt_length, completion, number)

    async def _prompt(self, place: Place, ask: Ask) -> tuple[tuple[int, ...], int]:
        """The request's ids, and how many of them are new in its segment. Raises ApiError."""

        def render() -> list[int]:
            if place.node is None:
                return self.renderer.prompt(ask.messages, ask.tools)
            return self.renderer.suffix(place.rest, place.node.completion_ids)

        try:
            if letters_of(place.rest, ask.tools) < LONG_LETTERS:
                new = render()
            else:  # takes milliseconds: beside the event loop
                new = await asyncio.to_thread(render)
        except Exception as error:  # a chat template may refuse any history
            raise _refused(error) from None
        ids = (*place.kept, *new)
        return ids, len(new) if place.branch is None else len(ids)

    async def _completion(
        self, place: Place, ids: tuple[int, ...], room: int, number: int, ask: Ask
    ) -> Completion:
        session = segment_id(self.id, place.segment)
        if place.branch is not None:
            self.branches.append(place.branch)
            self.branched(session, segment_id(self.id, place.branch.parent))
        limit = min(room, self.config.max_completion_tokens, ask.max_tokens or room)
        sampling = self.sampling
        if ask.stop:
            usual = sampling or Sampling(1.0)
            sampling = replace(usual, stop=(*usual.stop, *ask.stop))
        # The last token of the turn before is computed in this one.
        routed = 0 if place.branch is not None else max(0, len(place.kept) - 1)
        request = Request(
            f"{self.id}/{number}", session, ids, limit, num_routed=routed, sampling=sampling
        )
        try:
            completion = await self.generate(request)
            if completion.finish_reason == "abort":
                raise EngineFault(f"engine {completion.engine} aborted request {request.id}")
        except Exception as error:
            # With it the episode ends, whatever the client does next.
            self.fault = error
            self.failed.set()
            raise ApiError("failed", f"the episode has failed: {told(error)}") from None
        return stopped(completion, sampling, self.renderer.text)

    def _answered(
        self,
        place: Place,
        ask: Ask,
        ids: tuple[int, ...],
        prompt_length: int,
        completion: Completion,
        number: int,
    ) -> Answer:
        """Record the turn, and say it as the client reads it."""
        written = self._read(completion, ask)
        whole = completion.finish_reason == "stop"
        # A call that cannot be read is text, and so is one of a client that has no tools: that is how servers
        # hand it out.
        calls = written.calls if whole and ask.tools else ()
        answer = written.answer if calls or not whole else written.said or written.answer
        stop = _first(self.renderer.text(completion.token_ids), ask.stop) if ask.stop else ""
        text = answer.partition(stop)[0] if stop else answer
        said = tuple(ToolCall(c.name, typed(c, ask.tools)) for c in calls)
        self._heard(place)
        if not self.turns:
            self.opening = ask.messages
        self.turns.append(
            Turn(
                prompt_ids=ids[len(ids) - prompt_length :],
                completion_ids=completion.token_ids,
                rollout_logprobs=completion.logprobs,
                versions=completion.versions,
                finish_reason=completion.finish_reason,
                engine=completion.engine,
                text=text,
                calls=calls,
                malformed=whole and bool(written.malformed),
                thought=written.reasoning,
                routing=completion.routing,
                segment=place.segment,
                begins=place.begins,
            )
        )
        self.conversation.played(
            place,
            ids,
            completion.token_ids,
            Message("assistant", text, said),
            len(self.turns) - 1,
            thought=written.thought,
        )
        name = f"{self.id}-{number}".replace(".", "-")
        finish: Finish = "length" if completion.finish_reason == "length" else "stop"
        return Answer(
            id=name,
            created=int(time.time()),
            model=self.model,
            text=text,
            thought=written.reasoning,
            calls=tuple(Call(f"call_{name}-{i}", c.name, c.arguments) for i, c in enumerate(said)),
            finish="calls" if said else finish,
            prompt_tokens=len(ids),
            completion_tokens=len(completion.token_ids),
            cached_tokens=min(completion.cached_tokens, len(ids)),
            stop="" if said else stop,
        )

    def _read(self, completion: Completion, ask: Ask) -> Written:
        try:
            return self.renderer.read(completion.token_ids, ask.tools)
        except Exception:  # a parser met a client's schema; the turn is there all the same
            return Written("", self.renderer.text(completion.token_ids))

    def _heard(self, place: Place) -> None:
        """The turn before has heard what this request brought after it."""
        if place.node is not None and place.branch is None:
            before = self.turns[place.node.turn]
            self.turns[place.node.turn] = replace(before, observations=place.rest)

    def segments(self) -> tuple[tuple[Turn, ...], tuple[Branch, ...]]:
        """The turns by segment, and the branches; segments without a turn are left out, and the others
        counted anew."""
        numbers = {old: new for new, old in enumerate(sorted({t.segment for t in self.turns}))}
        turns = sorted(self.turns, key=lambda t: t.segment)
        branches = [b for b in self.branches if numbers.get(b.segment)]
        return (
            tuple(replace(t, segment=numbers[t.segment]) for t in turns),
            tuple(
                replace(b, segment=numbers[b.segment], parent=numbers.get(b.parent, 0))
                for b in branches
            ),
        )


def _refused(error: Exception) -> ApiError:
    return ApiError("invalid", f"the policy's chat template refuses these messages: {told(error)}")


async def _heard_of(task: asyncio.Task[Answer]) -> Answer:
    """The answer of a turn, for one of those who wait for it. Raises ApiError."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise ApiError("failed", "the episode is over") from None
        raise


def typed(call: ToolCall, tools: Sequence[ToolSchema]) -> JsonObject:
    """The arguments with the types that the tool's schema names, where a format writes all of them as text:
    `{"a": "2"}` -> `{"a": 2}` for an integer. What cannot be read so stays text."""
    root = next((t.parameters for t in tools if t.name == call.name), {})
    known = root.get("properties")
    properties: JsonObject = known if isinstance(known, dict) else {}
    return {
        name: _typed(value, _types(properties.get(name), root)) if isinstance(value, str) else value
        for name, value in call.arguments.items()
    }


def _types(schema: object, root: JsonObject) -> set[str]:
    """The types that a schema takes, of all its choices."""
    found = resolve(schema, root)
    named = found.get("type")
    types = {str(one) for one in (named if isinstance(named, list) else [named]) if one is not None}
    for choices in (found.get("anyOf"), found.get("oneOf")):
        for one in choices if isinstance(choices, list) else ():
            kind = resolve(one, root).get("type")
            types |= {kind} if isinstance(kind, str) else set()
    return types


def _typed(text: str, types: set[str]) -> Any:
    if "string" in types:
        return None if text == "null" and "null" in types else text
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text
    # True is a number to Python, and no text of JSON is infinite.
    kinds = types & _JSON_TYPES.keys() if not isinstance(found, bool) else types & {"boolean"}
    fits = any(isinstance(found, _JSON_TYPES[kind]) for kind in kinds)
    return found if fits and not flaw_of(found) else text


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _first(text: str, stops: Sequence[str]) -> str:
    """The one of the client's stop texts that comes first, or ""."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else ""
