"""OpenAI's chat completions: `/v1/chat/completions`, read into an `Ask` and written from an `Answer`."""

import json
from collections.abc import Iterator
from typing import Any, cast

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
    stops_of,
    unknown_to,
    wants,
)
from rollout.gateway.exchange import Answer, Ask

_KINDS = ("text", "input_text", "output_text", "refusal")
# Of what asks for another distribution or another answer than the run's sampling, what asks for nothing.
_USUAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("auto",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
_TYPES: dict[str, JsonType] = {
    **USUAL,
    "prompt_cache_key": "string",
    "reasoning_effort": "string",
    "safety_identifier": "string",
    "verbosity": "string",
}
# What is read beside these.
_READ = ("model", "messages", "tools", "max_completion_tokens", "max_tokens", "stop")
_FINISH = {"stop": "stop", "length": "length", "calls": "tool_calls"}


def read(body: JsonObject, key: str) -> Ask:
    """A request's body. Raises ApiError."""
    check_kinds(body, _TYPES)
    tools = tools_of(list_of(body, "tools"))
    if body.get("tool_choice") == "none":
        body, tools = {**body, "tool_choice": "auto"}, ()
    refuse(body, _USUAL)
    if body.get("messages") is None:
        raise ApiError("invalid", "Missing required parameter: 'messages'.", "messages")
    return Ask(
        messages=messages_of(list_of(body, "messages")),
        tools=tools,
        max_tokens=count_of(body, "max_completion_tokens", "max_tokens"),
        stop=stops_of(body, "stop"),
        key=key,
        wants=wants(body),
        unknown=unknown_to(body, _TYPES, _USUAL, _READ),
    )


def messages_of(given: list[Any]) -> tuple[Message, ...]:
    """Messages in the form of the API. Raises ApiError."""
    found: list[Message] = []
    calls = Calls()
    for index, one in enumerate(given):
        where = f"messages[{index}]"
        message = object_of(one, where)
        role = message.get("role")
        check_kinds(message, {"name": "string", "tool_call_id": "string"}, where)
        if role == "assistant":
            found.append(_assistants(message, calls, where))
        elif role == "tool":
            id = message.get("tool_call_id")
            if not isinstance(id, str) or id not in calls:
                raise ApiError(
                    "invalid",
                    "Invalid parameter: messages with role 'tool' must be a response to a preceding message "
                    "with 'tool_calls'.",
                    where,
                )
            calls.answered(found, id, plain_text(message.get("content"), where, _KINDS))
        elif role in ("system", "developer", "user"):
            text = plain_text(message.get("content"), where, _KINDS)
            found.append(Message("user" if role == "user" else "system", text))
        else:
            raise ApiError("invalid", f"{where}: there is no role {role!r}", f"{where}.role")
    return tuple(found)


def _assistants(message: JsonObject, calls: Calls, where: str) -> Message:
    """A message that the policy wrote, and its calls noted. Raises ApiError."""
    refuse({f"{where}.prefix": message.get("prefix")}, {f"{where}.prefix": (False,)})
    made: list[ToolCall] = []
    for each in list_of(message, "tool_calls"):
        asked = object_of(each, f"{where}.tool_calls")
        check_kinds(asked, {"id": "string", "type": "string"}, f"{where}.tool_calls[]")
        function = object_of(asked.get("function"), f"{where}.tool_calls[].function")
        arguments = arguments_of(function.get("arguments", "{}"), where)
        made.append(call(function.get("name"), arguments))
        calls.made(asked.get("id"), made[-1].name)
    text = plain_text(message.get("content"), where, _KINDS)
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    reasoning = thought if isinstance(thought, str) else ""
    return Message("assistant", text, tuple(made), reasoning=reasoning)


def tools_of(given: list[Any]) -> tuple[ToolSchema, ...]:
    """Tools in the form of the API. Raises ApiError."""
    found: list[ToolSchema] = []
    for index, one in enumerate(given):
        where = f"tools[{index}]"
        tool = object_of(one, where)
        if tool.get("type", "function") != "function":
            raise ApiError(
                "invalid", f"{where}: only tools of the type 'function' are there", where
            )
        function = object_of(tool.get("function"), f"{where}.function")
        found.append(schema(function, function.get("parameters"), where))
    return tuple(found)


def schema(function: JsonObject, parameters: object, where: str) -> ToolSchema:
    """A tool by its name, description and JSON schema. Raises ApiError."""
    check_kinds(function, {"description": "string", "strict": "boolean"}, where)
    name, described = function.get("name"), function.get("description")
    if not isinstance(name, str) or not name:
        raise ApiError("invalid", f"{where}: a tool has to have a name", where)
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    text = described if isinstance(described, str) else ""
    return ToolSchema(name, text, object_of(parameters, f"{where}.parameters"))


def written(answer: Answer) -> JsonObject:
    """A whole answer."""
    return {
        "id": f"chatcmpl-{answer.id}",
        "object": "chat.completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [
            {
                "index": 0,
                "message": _message(answer),
                "logprobs": None,
                "finish_reason": _FINISH[answer.finish],
            }
        ],
        "usage": _usage(answer),
    }


def streamed(answer: Answer, *, usage: bool) -> Iterator[str]:
    """The same as the data of server-sent events. usage: whether the client asked for the counts."""
    head = {
        "id": f"chatcmpl-{answer.id}",
        "object": "chat.completion.chunk",
        "created": answer.created,
        "model": answer.model,
    }

    def chunk(delta: JsonObject, finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return json.dumps({**head, "choices": [choice], **({"usage": None} if usage else {})})

    yield chunk({"role": "assistant", "content": "" if answer.text else None})
    if answer.thought:
        yield chunk({"reasoning_content": answer.thought})
    if answer.text:
        yield chunk({"content": answer.text})
    for index, one in enumerate(cast(list[JsonObject], _message(answer).get("tool_calls", []))):
        yield chunk({"tool_calls": [{"index": index, **one}]})
    yield chunk({}, _FINISH[answer.finish])
    if usage:
        yield json.dumps({**head, "choices": [], "usage": _usage(answer)})
    yield "[DONE]"


def error(failure: ApiError) -> JsonObject:
    """An error in the form of the API."""
    kinds = {"secret": "authentication_error", "failed": "server_error", "too_many": "requests"}
    codes = {
        "too_long": "context_length_exceeded",
        "secret": "invalid_api_key",
        "model": "model_not_found",
        "too_many": "rate_limit_exceeded",
        "spent": "turn_limit_exceeded",
    }
    return {
        "error": {
            "message": str(failure),
            "type": kinds.get(failure.kind, "invalid_request_error"),
            "param": failure.param or None,
            "code": codes.get(failure.kind),
        }
    }


def _message(answer: Answer) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.thought:
        message["reasoning_content"] = answer.thought
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": one.id,
                "type": "function",
                "function": {
                    "name": one.name,
                    "arguments": json.dumps(one.arguments, ensure_ascii=False),
                },
            }
            for one in answer.calls
        ]
    else:
        message["content"] = answer.text
    return message


def _usage(answer: Answer) -> JsonObject:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }
