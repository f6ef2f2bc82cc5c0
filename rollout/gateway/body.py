"""Parts of a request's body, read as strictly as the APIs do: a wrong one is a sentence with its name."""

import hashlib
import json
from bisect import bisect
from collections.abc import Collection, Mapping
from typing import Any, Literal, cast

from envs.message import JsonObject, Message, ToolCall
from envs.text import encodable, shown
from rollout.gateway.api_error import ApiError
from rollout.reading import flaw_of

JsonType = Literal["string", "number", "integer", "boolean", "object", "array"]
_KINDS: dict[JsonType, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "object": dict,
    "array": list,
}
# Sampling is the run's: these are read, and overruled.
SAMPLING: dict[str, JsonType] = {
    "temperature": "number",
    "top_p": "number",
    "top_k": "integer",
    "min_p": "number",
    "seed": "integer",
    "frequency_penalty": "number",
    "presence_penalty": "number",
    "repetition_penalty": "number",
}
# What any of the APIs has, and a run makes nothing of.
USUAL: dict[str, JsonType] = {
    **SAMPLING,
    "stream": "boolean",
    "stream_options": "object",
    "metadata": "object",
    "service_tier": "string",
    "store": "boolean",
    "user": "string",
}
# Further parameters of engines' servers that ask for another prompt or another distribution, and the values
# with which they ask for nothing.
BEYOND: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "prompt_logprobs": (),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "use_beam_search": (False,),
}


def parsed(raw: bytes) -> JsonObject:
    """A body as a JSON object. Raises ApiError."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        why = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(
            "invalid", f"We could not parse the JSON body of your request: {why}"
        ) from None
    if not isinstance(body, dict):
        raise ApiError("invalid", "the body of a request has to be a JSON object")
    return cast(JsonObject, body)


def text_of(body: JsonObject, name: str) -> str:
    """A text that has to be there. Raises ApiError."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise ApiError("invalid", f"you must provide a {name!r} parameter, a text", name)
    return value


def list_of(body: JsonObject, name: str) -> list[Any]:
    """A list, empty where there is none. Raises ApiError."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ApiError("invalid", f"{name!r} has to be a list", name)
    return cast(list[Any], value)


def object_of(value: object, name: str) -> JsonObject:
    """An object. Raises ApiError."""
    if not isinstance(value, dict):
        raise ApiError("invalid", f"{name!r} has to be an object", name)
    return cast(JsonObject, value)


def count_of(body: JsonObject, *names: str) -> int | None:
    """The first of these numbers that is there, at least 1. Raises ApiError."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ApiError("invalid", f"{name!r} has to be a whole number of at least 1", name)
        return value
    return None


def stops_of(body: JsonObject, name: str) -> tuple[str, ...]:
    """Texts at which an answer ends: one, or a list. Raises ApiError."""
    value = body.get(name)
    if isinstance(value, str):
        value = [value]
    found = list_of({name: value}, name)
    if not all(isinstance(one, str) and one for one in found):
        raise ApiError("invalid", f"{name!r} has to be a text or a list of texts", name)
    return tuple(map(encodable, found))


def check_kinds(body: JsonObject, kinds: Mapping[str, JsonType], where: str = "") -> None:
    """Raise ApiError for a parameter of another type than its API has; null is none."""
    for name, kind in kinds.items():
        value = body.get(name)
        # True is a number to Python.
        fits = isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "boolean")
        if value is not None and not fits:
            at = f"{where}.{name}" if where else name
            raise ApiError(
                "invalid", f"Invalid type for {at!r}: expected {kind}, got {shown(value)}", at
            )


def refuse(body: JsonObject, usual: Mapping[str, Collection[object]]) -> None:
    """Raise ApiError for a parameter that asks more than the run's sampling does: any value but these, and
    any of `BEYOND`."""
    for name, values in {**BEYOND, **usual}.items():
        value = body.get(name)
        if value is not None and value not in values:
            raise ApiError(
                "invalid",
                f"{name!r}: {json.dumps(value)[:100]} is not supported: a run samples its policy freely, one "
                "answer at a time; leave it out",
                name,
            )


def wants(body: JsonObject) -> tuple[str, ...]:
    """The sampling that a client names and the run overrules, such as ("temperature=0.2",)."""
    named = sorted(SAMPLING.keys() & body.keys())
    return tuple(f"{n}={json.dumps(body[n])[:40]}" for n in named if body[n] is not None)


def unknown_to(body: JsonObject, *known: Collection[str]) -> tuple[str, ...]:
    """The first names of parameters that nobody here makes anything of."""
    found = sorted(body.keys() - set(BEYOND).union(*known))[:20]
    return tuple(encodable(name[:60]) for name in found)


class Calls:
    """Calls of a history so far, by their ids: a result says of itself which call it is of, and no more."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[int, str]] = {}
        self._count = 0
        # Of the results that end the history: the numbers of their calls.
        self._results: list[int] = []

    def made(self, id: object, name: str) -> None:
        """Note a call."""
        self._calls[str(id)] = (self._count, name)
        self._count += 1

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and id in self._calls

    def answered(self, history: list[Message], id: str, text: str) -> None:
        """Put the result of a call at the end of a history, behind the results of calls before it: most chat
        templates write results without ids, and a client that works in parallel sends them as they come."""
        number, name = self._calls[id]
        if not history or history[-1].role != "tool":
            self._results.clear()
        begin = len(history) - len(self._results)
        at = bisect(self._results, number)
        self._results.insert(at, number)
        history.insert(begin + at, Message("tool", text, name=name))


def key_of(path: str, body: JsonObject, idempotency: str) -> str:
    """Equal for requests that ask the same; a stream and a whole answer are the same. idempotency: the
    client's own key for it, or ""."""
    plain = {n: v for n, v in body.items() if n not in ("stream", "stream_options")}
    text = json.dumps([path, idempotency, plain], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def arguments_of(text: object, name: str) -> JsonObject:
    """The arguments of an earlier call. Those that are no object stand as one text, as the policy wrote them.
    Raises ApiError."""
    if not isinstance(text, str):
        raise ApiError("invalid", f"the arguments of {name!r} have to be a text with JSON")
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = text
    return cast(JsonObject, found) if isinstance(found, dict) else {"arguments": found}


def call(name: object, arguments: JsonObject) -> ToolCall:
    """An earlier call. Raises ApiError."""
    if not isinstance(name, str) or not name:
        raise ApiError("invalid", "a tool call has to have the name of its tool")
    if flaw := flaw_of(arguments):
        raise ApiError("invalid", f"a call of {shown(name)}: {flaw}")
    return ToolCall(name, arguments)


def plain_text(content: object, where: str, kinds: Collection[str]) -> str:
    """A message's content as text: a text, or parts of these kinds end to end. Raises ApiError."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError("invalid", f"{where}: content has to be a text or a list of parts", where)
    texts: list[str] = []
    for part in cast(list[Any], content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            raise ApiError(
                "invalid",
                f"{where}: a content part of the type {kind!r} is not supported, only text is",
                where,
            )
        text = cast(JsonObject, part).get("text", cast(JsonObject, part).get("refusal"))
        if not isinstance(text, str):
            raise ApiError("invalid", f"{where}: a text part has to have a text", where)
        texts.append(text)
    return "".join(texts)
