"""How a policy writes tool calls as text, and how that text is read back.

`longcat`: `<longcat_tool_call>add<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>2</longcat_arg_value>
</longcat_tool_call>`, or a JSON object between the outer marks, as LongCat-Flash-Chat writes it.
`hermes`: `<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>` (Qwen3); `"parameters"` will do.
A call inside a thought is none (`rollout.thought`).
A call that cannot be read is the policy's fault: it becomes a sentence that goes back to the policy.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Literal

from envs.message import ToolCall
from rollout.thought import split_thought, thought_end

ToolFormat = Literal["longcat", "hermes"]


class MalformedCall(ValueError):
    """The text opens a tool call and does not finish one; the message is meant for the policy."""


_LONGCAT_ARGUMENT = re.compile(
    r"<longcat_arg_key>(.*?)</longcat_arg_key>\s*<longcat_arg_value>(.*?)</longcat_arg_value>", re.S
)
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
# Beside name and arguments, a call may say these.
_KNOWN = {"name", "arguments", "parameters", "id", "type"}


def parse_calls(
    text: str, style: ToolFormat, *, thinking: bool = False
) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a completion into its plain text and its tool calls, in order; its thought is neither.

    thinking: the text begins in the middle of a thought. Raises MalformedCall where the text opens a call
    that cannot be read.
    """
    opening, closing, read = _STYLES[style]
    _, text = split_completion(text, style, thinking=thinking)
    plain: list[str] = []
    calls: list[ToolCall] = []
    at = 0
    while (start := text.find(opening, at)) >= 0:
        plain.append(text[at:start])
        body = start + len(opening)
        at = _call_end(text, body, closing)
        if not text[body:at].endswith(closing):
            raise MalformedCall(f"a tool call has to end with {closing}")
        calls.append(read(text[body : at - len(closing)]))
    plain.append(text[at:])
    if any(closing in part for part in plain):
        raise MalformedCall(f"{closing} without {opening} before it")
    return "".join(plain).strip(), tuple(calls)


def split_completion(text: str, style: ToolFormat, *, thinking: bool = False) -> tuple[str, str]:
    """The thought in a completion, and the rest of it with its calls (`rollout.thought`)."""
    opening, closing, read = _STYLES[style]

    def call_end(text: str, start: int) -> int:
        end = _call_end(text, start, closing)
        try:
            if text[start:end].endswith(closing):
                read(text[start : end - len(closing)])
                return end
        except MalformedCall:
            pass
        # What looks like a call may be a thought that speaks of one.
        return thought_end(text, start, end)

    return split_thought(text, opening, call_end, thinking=thinking)


def _call_end(text: str, start: int, closing: str) -> int:
    """Where the call whose body begins at `start` ends, its closing mark included, or the text does.

    A mark inside a JSON string is part of the string.
    """
    at = _space_end(text, start)
    if text.startswith("{", at):
        try:
            at = _space_end(text, _DECODER.raw_decode(text, at)[1])
        except (ValueError, RecursionError):
            at = start
    end = text.find(closing, at)
    return len(text) if end < 0 else end + len(closing)


def _space_end(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    return space.end() if space else start


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


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedCall("a tool call has to be one JSON object") from None


_STYLES: dict[ToolFormat, tuple[str, str, Callable[[str], ToolCall]]] = {
    "longcat": ("<longcat_tool_call>", "</longcat_tool_call>", _read_longcat),
    "hermes": ("<tool_call>", "</tool_call>", _read_json),
}
