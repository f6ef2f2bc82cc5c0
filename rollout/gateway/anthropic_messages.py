"""Anthropic's messages: `/v1/messages`, read into an `Ask` and written from an `Answer`."""

import json
from collections.abc import Iterator
from typing import Any, cast

from envs.dynamic_tool import as_object
from envs.message import JsonObject, Message, ToolCall, ToolSchema
from envs.text import shown
from rollout.gateway.api_error import ApiError, Kind
from rollout.gateway.body import (
    USUAL,
    Calls,
    JsonType,
    call,
    check_kinds,
    count_of,
    list_of,
    object_of,
    plain_text,
    refuse,
    stops_of,
    unknown_to,
    wants,
)
from rollout.gateway.chat_completions import schema
from rollout.gateway.exchange import Answer, Ask

_TYPES: dict[str, JsonType] = {
    **USUAL,
    "container": "string",
    "context_management": "object",
    "output_config": "object",
    "thinking": "object",
}
# What is read beside these.
_READ = ("model", "messages", "system", "tools", "tool_choice", "max_tokens", "stop_sequences")
_USUAL: dict[str, tuple[object, ...]] = {
    "tool_choice": ("auto", "none"),
    "tool_choice.disable_parallel_tool_use": (False,),
    "output_format": (),
    "output_config.format": (),
}
_FINISH = {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use"}
_ERRORS: dict[Kind, str] = {
    "secret": "authentication_error",
    "model": "not_found_error",
    "path": "not_found_error",
    "too_large": "request_too_large",
    "too_many": "rate_limit_error",
    "failed": "api_error",
}


def read(body: JsonObject, key: str) -> Ask:
    """A request's body. Raises ApiError."""
    check_kinds(body, _TYPES)
    limit = count_of(body, "max_tokens")
    if limit is None:
        raise ApiError("invalid", "max_tokens: Field required", "max_tokens")
    tools = tuple(_tool(one, f"tools.{i}") for i, one in enumerate(list_of(body, "tools")))
    choice = as_object(body.get("tool_choice"))
    kind = choice.get("type", body.get("tool_choice"))
    if kind == "none":
        tools = ()
    parts = {
        "tool_choice": kind,
        "tool_choice.disable_parallel_tool_use": choice.get("disable_parallel_tool_use"),
        "output_config.format": as_object(body.get("output_config")).get("format"),
    }
    refuse({**body, **parts}, _USUAL)
    if body.get("messages") is None:
        raise ApiError("invalid", "messages: Field required", "messages")
    calls = Calls()
    messages = [
        message
        for i, one in enumerate(list_of(body, "messages"))
        for message in _messages(one, f"messages.{i}", calls)
    ]
    if messages and messages[-1].role == "assistant":
        raise ApiError(
            "invalid",
            "messages: the conversation must end with a user message: nobody can begin the policy's answer",
            "messages",
        )
    if system := plain_text(body.get("system"), "system", ("text",)):
        messages.insert(0, Message("system", system))
    return Ask(
        messages=tuple(messages),
        tools=tools,
        max_tokens=limit,
        stop=stops_of(body, "stop_sequences"),
        key=key,
        wants=wants(body),
        unknown=unknown_to(body, _TYPES, _USUAL, _READ),
    )


def _messages(one: object, where: str, calls: Calls) -> list[Message]:
    """One of the API's messages: results of tools are messages of their own here. calls: those so far; those
    of this message are added. Raises ApiError."""
    message = object_of(one, where)
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise ApiError("invalid", f"{where}.role: there is no role {role!r}", where)
    if not isinstance(content, list):
        return [Message(role, plain_text(content, where, ()))]
    found: list[Message] = []
    texts: list[str] = []
    thoughts: list[str] = []
    made: list[ToolCall] = []
    for place, each in enumerate(cast(list[Any], content)):
        part = object_of(each, f"{where}.content.{place}")
        kind = part.get("type")
        if kind == "tool_use" and role == "assistant":
            check_kinds(part, {"id": "string"}, where)
            made.append(call(part.get("name"), object_of(part.get("input", {}), where)))
            calls.made(part.get("id"), made[-1].name)
        elif kind == "tool_result" and role == "user":
            check_kinds(part, {"is_error": "boolean"}, where)
            id = _known(part.get("tool_use_id"), calls, where)
            text = plain_text(part.get("content"), where, ("text",))
            # An error without a word would read as a result that is empty.
            failed = part.get("is_error") and not text.strip()
            calls.answered(found, id, "error" if failed else text)
        elif kind == "thinking":
            check_kinds(part, {"thinking": "string", "signature": "string"}, where)
            thoughts.append(part.get("thinking") or "")
        elif kind != "redacted_thinking":
            texts.append(plain_text([part], where, ("text",)))
    if texts or made or not found:
        found.append(Message(role, "".join(texts), tuple(made), reasoning="\n".join(thoughts)))
    return found


def _known(id: object, calls: Calls, where: str) -> str:
    """The id of a call that there was. Raises ApiError."""
    if isinstance(id, str) and id in calls:
        return id
    raise ApiError(
        "invalid",
        f"{where}: `tool_result` blocks must have a corresponding `tool_use` block in a previous message; "
        f"there is none with the id {shown(id)}",
        where,
    )


def _tool(one: object, where: str) -> ToolSchema:
    tool = object_of(one, where)
    if tool.get("type") not in (None, "custom"):
        raise ApiError("invalid", f"{where}: there is no server to run {tool.get('type')!r}", where)
    return schema(tool, tool.get("input_schema"), where)


def written(answer: Answer) -> JsonObject:
    """A whole answer."""
    return {
        **_head(answer),
        "content": list(_blocks(answer)),
        "stop_reason": "stop_sequence" if answer.stop else _FINISH[answer.finish],
        "stop_sequence": answer.stop or None,
        "usage": {
            "input_tokens": answer.prompt_tokens - answer.cached_tokens,
            "cache_read_input_tokens": answer.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": answer.completion_tokens,
        },
    }


def streamed(answer: Answer) -> Iterator[tuple[str, str]]:
    """The same as the names and data of server-sent events."""

    def event(name: str, **data: Any) -> tuple[str, str]:
        return name, json.dumps({"type": name, **data})

    whole = written(answer)
    start = {**whole, "content": [], "stop_reason": None, "stop_sequence": None}
    start["usage"] = {**cast(JsonObject, whole["usage"]), "output_tokens": 0}
    yield event("message_start", message=start)
    for index, block in enumerate(_blocks(answer)):
        for name, data in _block_events(block):
            yield event(name, index=index, **data)
    delta = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
    usage = {"output_tokens": answer.completion_tokens}
    yield event("message_delta", delta=delta, usage=usage)
    yield event("message_stop")


def _block_events(block: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    empty, deltas = block, []
    match block["type"]:
        case "text":
            empty = {**block, "text": ""}
            deltas = [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            empty = {**block, "thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
        case _:
            empty = {**block, "input": {}}
            text = json.dumps(block["input"], ensure_ascii=False)
            deltas = [{"type": "input_json_delta", "partial_json": text}]
    yield "content_block_start", {"content_block": empty}
    for delta in deltas:
        yield "content_block_delta", {"delta": delta}
    yield "content_block_stop", {}


def error(failure: ApiError) -> JsonObject:
    """An error in the form of the API."""
    kind = _ERRORS.get(failure.kind, "invalid_request_error")
    said = "prompt is too long: " if failure.kind == "too_long" else ""
    return {"type": "error", "error": {"type": kind, "message": f"{said}{failure}"}}


def _head(answer: Answer) -> JsonObject:
    return {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "model": answer.model}


def _blocks(answer: Answer) -> Iterator[JsonObject]:
    if answer.thought:
        yield {"type": "thinking", "thinking": answer.thought, "signature": answer.id}
    if answer.text or not answer.calls:
        yield {"type": "text", "text": answer.text}
    for one in answer.calls:
        id = one.id.replace("call_", "toolu_")
        yield {"type": "tool_use", "id": id, "name": one.name, "input": one.arguments}
