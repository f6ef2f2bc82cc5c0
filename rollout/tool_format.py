"""How Dorado's own readers read a tool call that a policy wrote as text (`rollout.reading` finds the calls).

`longcat`: `<longcat_tool_call>add<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>2</longcat_arg_value>
</longcat_tool_call>`, or a JSON object between the outer marks, as LongCat-Flash-Chat writes it.
`cohere`: `<|START_ACTION|>[{"tool_name": "add", "parameters": {"a": 2}}]<|END_ACTION|>` (Command A).
`hermes`: `<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>` (Qwen3); `"parameters"` will do.
A call that cannot be read is the policy's fault: it becomes a sentence that goes back to the policy.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from envs.message import ToolCall, ToolSchema


class MalformedCall(ValueError):
    """The text opens a tool call and does not finish one; the message is meant for the policy."""


# From where one is read, the next argument of a call.
_LONGCAT_KEY = re.compile(r"\s*<longcat_arg_key>")
_LONGCAT_VALUE = re.compile(r"</longcat_arg_key>\s*<longcat_arg_value>")
_LONGCAT_END = "</longcat_arg_value>"
# Beside name and arguments, a call may say these.
_KNOWN = {"name", "arguments", "parameters", "id", "type"}


def own_reader(name: str) -> Callable[[str, Sequence[ToolSchema]], tuple[ToolCall, ...]]:
    """The reader of a format's block, marks included. Raises KeyError for a format of others."""
    opening, closing, read = _STYLES[name]
    return lambda block, tools: read(block[len(opening) : len(block) - len(closing)])


def _read_longcat(body: str) -> ToolCall:
    if body.lstrip().startswith("{"):
        return _read_json(body)
    name, _, _ = body.partition("<longcat_arg_key>")
    if not name.strip():
        raise MalformedCall("a tool call has to begin with the name of a tool")
    arguments: dict[str, Any] = {}
    at = len(name)
    while key := _LONGCAT_KEY.match(body, at):
        value = _LONGCAT_VALUE.search(body, key.end())
        end = body.find(_LONGCAT_END, value.end()) if value else -1
        if value is None or end < 0:
            break
        arguments[body[key.end() : value.start()].strip()] = body[value.end() : end]
        at = end + len(_LONGCAT_END)
    if body[at:].strip():
        raise MalformedCall("arguments have to be pairs of longcat_arg_key and longcat_arg_value")
    return ToolCall(name.strip(), arguments)


def _read_json(body: str) -> ToolCall:
    call = _json(body)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise MalformedCall('a tool call needs a "name"')
    unknown = [key for key in call if key not in _KNOWN]
    given = [key for key in ("arguments", "parameters") if key in call]
    if len(given) > 1:
        raise MalformedCall('a tool call has "arguments" or "parameters", not both')
    if unknown and not given:
        raise MalformedCall(
            f'the arguments of a tool call are its "arguments", not its "{unknown[0]}"'
        )
    arguments = call[given[0]] if given else {}
    if isinstance(arguments, str):  # JSON within JSON, as OpenAI's interface writes it
        arguments = _json(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise MalformedCall('"arguments" of a tool call have to be a JSON object')
    return ToolCall(call["name"], arguments)


def _read_cohere(body: str) -> tuple[ToolCall, ...]:
    calls = _json(body)
    if not isinstance(calls, list) or not all(isinstance(one, dict) for one in calls):
        raise MalformedCall("tool calls have to be a JSON list of objects")
    found: list[ToolCall] = []
    for one in calls:
        name, parameters = one.get("tool_name"), one.get("parameters", {})
        if not isinstance(name, str) or not isinstance(parameters, dict):
            raise MalformedCall('a tool call needs a "tool_name" and an object of "parameters"')
        found.append(ToolCall(name, parameters))
    return tuple(found)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedCall("a tool call has to be one JSON object") from None


def _nothing(body: str) -> tuple[ToolCall, ...]:
    raise MalformedCall("this checkpoint's format has no tool calls")


_STYLES: dict[str, tuple[str, str, Callable[[str], tuple[ToolCall, ...]]]] = {
    "longcat": ("<longcat_tool_call>", "</longcat_tool_call>", lambda body: (_read_longcat(body),)),
    "hermes": ("<tool_call>", "</tool_call>", lambda body: (_read_json(body),)),
    "cohere": ("<|START_ACTION|>", "<|END_ACTION|>", _read_cohere),
    "text": ("", "", _nothing),
}
