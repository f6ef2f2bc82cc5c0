"""OpenAI's responses: `/v1/responses`, read into an `Ask` and written from an `Answer`.

The whole input comes with each request; what a server would have kept (`previous_response_id`,
`conversation`) is refused.
"""

import json
from collections.abc import Iterator
from typing import Any

from envs.message import JsonObject, Message, ToolCall, ToolSchema
from rollout.gateway.api_error import ApiError
from rollout.gateway.body import (
    USUAL,
    Calls,
    JsonType,
    arguments_of,
    call,
    check_kinds,
    count_of,
    list_of,
    object_of,
    plain_text,
    refuse,
    unknown_to,
    wants,
)
from rollout.gateway.chat_completions import schema
from rollout.gateway.exchange import Answer, Ask

_KINDS = ("input_text", "output_text", "text", "refusal")
_TYPES: dict[str, JsonType] = {
    **USUAL,
    "include": "array",
    "max_tool_calls": "integer",
    "prompt_cache_key": "string",
    "reasoning": "object",
    "safety_identifier": "string",
    "text": "object",
    "truncation": "string",
}
# What is read beside these.
_READ = ("model", "input", "instructions", "tools", "max_output_tokens")
_USUAL: dict[str, tuple[object, ...]] = {
    "top_logprobs": (0,),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
    "text.format": ({"type": "text"},),
    "background": (False,),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
}


def read(body: JsonObject, key: str) -> Ask:
    """A request's body. Raises ApiError."""
    check_kinds(body, _TYPES)
    tools = tuple(_tool(one, f"tools[{i}]") for i, one in enumerate(list_of(body, "tools")))
    if body.get("tool_choice") == "none":
        body, tools = {**body, "tool_choice": "auto"}, ()
    refuse({**body, "text.format": (body.get("text") or {}).get("format")}, _USUAL)
    given = body.get("input")
    if given is None:
        raise ApiError("invalid", "Missing required parameter: 'input'.", "input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages = _messages(list_of({"input": items}, "input"))
    if instructions := plain_text(body.get("instructions"), "instructions", _KINDS):
        messages.insert(0, Message("system", instructions))
    return Ask(
        messages=tuple(messages),
        tools=tools,
        max_tokens=count_of(body, "max_output_tokens"),
        key=key,
        wants=wants(body),
        unknown=unknown_to(body, _TYPES, _USUAL, _READ),
    )


def _messages(items: list[Any]) -> list[Message]:
    """Items as messages: what the policy wrote between two others is one message. Raises ApiError."""
    found: list[Message] = []
    calls = Calls()
    thoughts: list[str] = []  # that the next of these is to have

    def wrote(text: str = "", made: tuple[ToolCall, ...] = ()) -> None:
        before = Message("assistant")
        if found and found[-1].role == "assistant":
            before = found.pop()
        said, calls = before.content + text, (*before.tool_calls, *made)
        thought = "\n".join(filter(None, (before.reasoning, *thoughts)))
        thoughts.clear()
        found.append(Message("assistant", said, calls, reasoning=thought))

    for index, one in enumerate(items):
        where = f"input[{index}]"
        item = object_of(one, where)
        kind = item.get("type", "message")
        check_kinds(item, {"call_id": "string", "id": "string"}, where)
        if kind == "function_call":
            made = call(item.get("name"), arguments_of(item.get("arguments", "{}"), where))
            calls.made(item.get("call_id"), made.name)
            wrote(made=(made,))
        elif kind == "function_call_output":
            id = item.get("call_id")
            if not isinstance(id, str) or id not in calls:
                raise ApiError(
                    "invalid",
                    f"No tool call found for function call output with call_id {id}.",
                    where,
                )
            calls.answered(found, id, plain_text(item.get("output"), where, _KINDS))
        elif kind == "message":
            text, role = plain_text(item.get("content"), where, _KINDS), item.get("role")
            if role == "assistant":
                wrote(text)
            elif role in ("user", "system", "developer"):
                thoughts.clear()
                found.append(Message("user" if role == "user" else "system", text))
            else:
                raise ApiError("invalid", f"{where}: there is no role {role!r}", f"{where}.role")
        elif kind == "reasoning":
            thoughts.append(plain_text(item.get("content"), where, ("reasoning_text",)))
        else:
            raise ApiError(
                "invalid", f"{where}: an item of the type {kind!r} is not supported", where
            )
    return found


def _tool(one: object, where: str) -> ToolSchema:
    tool = object_of(one, where)
    if tool.get("type") != "function":
        raise ApiError("invalid", f"{where}: there is no server to run {tool.get('type')!r}", where)
    return schema(tool, tool.get("parameters"), where)


def written(answer: Answer) -> JsonObject:
    """A whole answer."""
    cut = answer.finish == "length"
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": answer.created,
        "model": answer.model,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "instructions": None,
        "metadata": {},
        "output": list(_items(answer)),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": None,
        "top_p": None,
        "usage": {
            "input_tokens": answer.prompt_tokens,
            "input_tokens_details": {"cached_tokens": answer.cached_tokens},
            "output_tokens": answer.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
    }


def streamed(answer: Answer) -> Iterator[tuple[str, str]]:
    """The same as the names and data of server-sent events."""
    whole = written(answer)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[tuple[str, JsonObject]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
    ]
    for index, item in enumerate(_items(answer)):
        events += _item_events(item, index)
    end = "response.incomplete" if answer.finish == "length" else "response.completed"
    events.append((end, {"response": whole}))
    for number, (name, data) in enumerate(events):
        yield name, json.dumps({"type": name, "sequence_number": number, **data})


def _item_events(item: JsonObject, index: int) -> Iterator[tuple[str, JsonObject]]:
    at: JsonObject = {"item_id": item["id"], "output_index": index}
    empty: JsonObject = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
    begun = {**item, **empty, "status": "in_progress"}
    yield "response.output_item.added", {"output_index": index, "item": begun}
    if item["type"] == "message":
        [part] = item["content"]
        inside = {**at, "content_index": 0}
        yield "response.content_part.added", {**inside, "part": {**part, "text": ""}}
        text: JsonObject = {**inside, "logprobs": []}
        yield "response.output_text.delta", {**text, "delta": part["text"]}
        yield "response.output_text.done", {**text, "text": part["text"]}
        yield "response.content_part.done", {**inside, "part": part}
    elif item["type"] == "reasoning":
        [part] = item["content"]
        thought: JsonObject = {**at, "content_index": 0}
        yield "response.reasoning_text.delta", {**thought, "delta": part["text"]}
        yield "response.reasoning_text.done", {**thought, "text": part["text"]}
    elif item["type"] == "function_call":
        yield "response.function_call_arguments.delta", {**at, "delta": item["arguments"]}
        done = {**at, "name": item["name"], "arguments": item["arguments"]}
        yield "response.function_call_arguments.done", done
    yield "response.output_item.done", {"output_index": index, "item": item}


def _items(answer: Answer) -> Iterator[JsonObject]:
    if answer.thought:
        yield {
            "id": f"rs_{answer.id}",
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": answer.thought}],
        }
    if answer.text or not answer.calls:
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        yield {
            "id": f"msg_{answer.id}",
            "type": "message",
            "role": "assistant",
            "status": "incomplete" if answer.finish == "length" else "completed",
            "content": [part],
        }
    for number, one in enumerate(answer.calls):
        yield {
            "id": f"fc_{answer.id}-{number}",
            "type": "function_call",
            "call_id": one.id,
            "name": one.name,
            "arguments": json.dumps(one.arguments, ensure_ascii=False),
            "status": "completed",
        }
