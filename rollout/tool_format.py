"""How a policy writes tool calls as text, and how that text is read back.

`longcat`: `<longcat_tool_call>add<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>2</longcat_arg_value>
</longcat_tool_call>`, or a JSON object between the outer marks, as LongCat-Flash-Chat writes it.
`hermes`: `<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>` (Qwen3).
A call that cannot be read is the policy's fault: it becomes a sentence that goes back to the policy.
"""

import json
import re
from collections.abc import Callable
from typing import Literal

from envs.message import ToolCall

ToolFormat = Literal["longcat", "hermes"]


class MalformedCall(ValueError):
    """The text opens a tool call and does not finish one; the message is meant for the policy."""


_LONGCAT_ARGUMENT = re.compile(
    r"<longcat_arg_key>(.*?)</longcat_arg_key>\s*<longcat_arg_value>(.*?)</longcat_arg_value>", re.S
)


def parse_calls(text: str, style: ToolFormat) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a completion into its plain text and its tool calls, in order.

    Raises MalformedCall where the text opens a call that cannot be read.
    """
    opening, closing, read = _STYLES[style]
    plain, *rest = text.split(opening)
    calls: list[ToolCall] = []
    for part in rest:
        body, mark, tail = part.partition(closing)
        if not mark:
            raise MalformedCall(f"a tool call has to end with {closing}")
        calls.append(read(body))
        plain += tail
    if closing in plain:
        raise MalformedCall(f"{closing} without {opening} before it")
    return plain.strip(), tuple(calls)


def _read_longcat(body: str) -> ToolCall:
    if body.lstrip().startswith("{"):
        return _read_json(body)
    name, _, _ = body.partition("<longcat_arg_key>")
    if not name.strip():
        raise MalformedCall("a tool call has to begin with the name of a tool")
    leftover = _LONGCAT_ARGUMENT.sub("", body[len(name) :]).strip()
    if leftover:
        raise MalformedCall("arguments have to be pairs of longcat_arg_key and longcat_arg_value")
    pairs = _LONGCAT_ARGUMENT.findall(body)
    return ToolCall(name.strip(), {key.strip(): value for key, value in pairs})


def _read_json(body: str) -> ToolCall:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedCall("a tool call has to be one JSON object") from None
    arguments = call.get("arguments", {}) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise MalformedCall('a tool call needs a "name"')
    if not isinstance(arguments, dict):
        raise MalformedCall('"arguments" of a tool call have to be a JSON object')
    return ToolCall(call["name"], arguments)


_STYLES: dict[ToolFormat, tuple[str, str, Callable[[str], ToolCall]]] = {
    "longcat": ("<longcat_tool_call>", "</longcat_tool_call>", _read_longcat),
    "hermes": ("<tool_call>", "</tool_call>", _read_json),
}
