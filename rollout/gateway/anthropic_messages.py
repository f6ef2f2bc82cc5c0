"""Anthropic's messages: `/v1/messages`, read into an `Ask` and written from an `Answer`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from envs.message import JsonObject, Message, ToolCall, ToolSchema
from envs.text import shown
from rollout.gateway.api_error import ApiError, Kind
from rollout.gateway.body import (
    USUAL,
    JsonType,
    call,
    check_kinds,
    count_of,
    list_of,
    object_of,
    plain_text,
    refuse,
    stops_of,
    wants,
)
from rollout.gateway.chat_completions import schema
from rollout.gateway.exchange import Answer, Ask

_TYPES: dict[str, JsonType] = {**USUAL, "thinking": "object", "container": "string"}
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
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "none":
        tools = ()
    refuse({"tool_choice": kind}, {"tool_choice": ("auto", "none")})
    refuse(body, {"output_format": (), "output_config": ({},)})
    if body.get("messages") is None:
        raise ApiError("invalid", "messages: Field required", "messages")
    names: dict[str, str] = {}
    messages = [
        message
        for i, one in enumerate(list_of(body, "messages"))
        for message in _messages(one, f"messages.{i}", names)
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
    )


def _messages(one: object, where: str, names: dict[str, str]) -> list[Message]:
    """One of the API's messages: results of tools are messages of their own here. names: of the tools that
    were called so far, by the call's id; those of this message are added. Raises ApiError."""
    message = object_of(one, where)
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise ApiError("invalid", f"{where}.role: there is no role {role!r}", where)
    if not isinstance(content, list):
        return [Message(role, plain_text(content, where, ()))]
    found: list[Message] = []
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for place, each in enumerate(cast(list[Any], content)):
        part = object_of(each, f"{where}.content.{place}")
        kind = part.get("type")
        if kind == "tool_use" and role == "assistant":
            check_kinds(part, {"id": "string"}, where)
            made = call(part.get("name"), object_of(part.get("input", {}), where))
            calls.append(made)
            names[str(part.get("id"))] = made.name
        elif kind == "tool_result" and role == "user":
            name = _name_of(part.get("tool_use_id"), names, where)
            text = plain_text(part.get("content"), where, ("text",))
            found.append(Message("tool", text, name=name))
        elif kind == "thinking":
            check_kinds(part, {"thinking": "string", "signature": "string"}, where)
            thoughts.append(part.get("thinking") or "")
        elif kind != "redacted_thinking":
            texts.append(plain_text([part], where, ("text",)))
    if texts or calls or not found:
        found.append(Message(role, "".join(texts), tuple(calls), reasoning="\n".join(thoughts)))
    return found


def _name_of(id: object, names: Mapping[str, str], where: str) -> str:
    """The name of the tool that an earlier call was of. Raises ApiError."""
    if isinstance(id, str) and id in names:
        return names[id]
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
        "stop_reason": _FINISH[answer.finish],
        "stop_sequence": None,
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
    start = {**whole, "content": [], "stop_reason": None}
    start["usage"] = {**cast(JsonObject, whole["usage"]), "output_tokens": 0}
    yield event("message_start", message=start)
    for index, block in enumerate(_blocks(answer)):
        for name, data in _block_events(block):
            yield event(name, index=index, **data)
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
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
