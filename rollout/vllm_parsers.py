"""vLLM's own parsers of tool calls, for the formats of real checkpoints; no engine is needed.

Flows in: one block of calls as text, the tools. Flows out: `ToolCall`s. A block that a parser reads nothing
from, or that it only keeps as text, is a malformed call. vLLM's parsers of reasoning are left out on purpose:
several end a thought where a call begins in it and hand that call out. `rollout.reading` takes thoughts out
before. The exception is harmony, whose channels vLLM reads as a whole.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionToolsParam,
)
from vllm.tool_parsers import ToolParserManager

from envs.message import ToolCall, ToolSchema
from rollout.format import Format
from rollout.reading import MOST_BROKEN, Written, read, sent
from rollout.tool_format import MalformedCall

# Strings, and what begins a mark in one.
_STRING, _MARKS = re.compile(r'"(?:[^"\\]|\\.)*"'), re.compile("[<\\[|`\uff5c]")
_PYTHON_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.S)
# Characters that no text for interchange holds (Unicode's private use area).
_PRIVATE = (0xE000, 0xF900)
_HARMONY = ("<|channel|>", "<|message|>", "<|start|>")
_ESCAPE_OR_MARK = re.compile(r"\\.|<", re.S)


def reader_of(
    format: Format, tokenizer: Any
) -> Callable[[str, Sequence[ToolSchema], bool], Written]:
    """How a format's completions are read: (text, tools, whether it begins in a thought) -> `Written`."""
    if format.name == "harmony":
        harmony = _harmony_reader(tokenizer)
        return lambda text, tools, thinking: harmony(text)
    block = partial(_read_block, format, tokenizer)
    return lambda text, tools, thinking: read(text, tools, format, thinking=thinking, block=block)


def _read_block(
    format: Format, tokenizer: Any, block: str, tools: Sequence[ToolSchema]
) -> tuple[ToolCall, ...]:
    if format.json:
        block = _escaped(block)
    if format.python:
        block = _PYTHON_STRING.sub(_as_python, block)
    shown = _hidden_in(block, format, tokenizer) if format.marks else {}
    for token, stand_in in shown.items():
        block = block.replace(token, stand_in)
    asked: list[Any] = [ChatCompletionToolsParam(**tool.as_chat()) for tool in tools]
    parser = ToolParserManager.get_tool_parser(format.parser)(tokenizer, asked or None)
    request = ChatCompletionRequest(messages=[], model="", tools=asked or None, seed=None)
    try:
        found = parser.extract_tool_calls(block, request)
    except Exception as error:  # the policy's text met a parser that did not expect it
        raise MalformedCall(f"a tool call cannot be read: {error}") from None
    if not found.tools_called:
        raise MalformedCall(f"a tool call has to be written as {format.models} write it")
    calls = (_call(one.function) for one in found.tool_calls)
    return tuple(replace(c, arguments=_restored(c.arguments, shown)) for c in calls)


def _hidden_in(block: str, format: Format, tokenizer: Any) -> dict[str, str]:
    """A stand-in for each control token in a block that is no mark of the format's: vLLM's parsers drop
    these, and the policy wrote them into a text."""
    tokens = {str(one) for one in tokenizer.get_added_vocab()} | {*tokenizer.all_special_tokens}
    found = [t for t in sorted(tokens, key=len, reverse=True) if t in block]
    others = [token for token in found if not re.search(format.marks, token)]
    free = (one for one in map(chr, range(*_PRIVATE)) if one not in block)
    return dict(zip(others, free, strict=False))


def _restored(value: Any, shown: Mapping[str, str]) -> Any:
    """The same with control tokens in the place of their stand-ins."""
    if isinstance(value, str):
        for token, stand_in in shown.items():
            value = value.replace(stand_in, token)
        return value
    if isinstance(value, list):
        return [_restored(one, shown) for one in cast(list[Any], value)]
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {_restored(key, shown): _restored(one, shown) for key, one in items}
    return value


def _escaped(block: str) -> str:
    """The same block with marks in its JSON strings escaped: vLLM looks for marks before it reads JSON."""
    decoder, at, parts, broken = json.JSONDecoder(), 0, list[str](), 0
    while broken < MOST_BROKEN and (start := block.find("{", at)) >= 0:
        try:
            end = decoder.raw_decode(block, start)[1]
        except (ValueError, RecursionError):
            end, broken = start + 1, broken + 1
        parts += block[at:start], _STRING.sub(_as_json, block[start:end])
        at = end
    return "".join([*parts, block[at:]])


def _as_json(string: re.Match[str]) -> str:
    return _MARKS.sub(lambda one: f"\\u{ord(one[0]):04x}", string[0])


def _as_python(string: re.Match[str]) -> str:
    return _ESCAPE_OR_MARK.sub(lambda one: "\\x3c" if one[0] == "<" else one[0], string[0])


def _call(function: Any) -> ToolCall:
    """vLLM's record of a call, whose arguments are JSON text."""
    name = str(function.name or "").strip()
    if not name:
        raise MalformedCall("a tool call has to name a tool")
    try:
        arguments = json.loads(function.arguments or "{}")
    except (ValueError, RecursionError):
        raise MalformedCall(f"{name}: the arguments have to be JSON") from None
    if not isinstance(arguments, dict):
        raise MalformedCall(f"{name}: the arguments have to be a JSON object")
    return sent(ToolCall(name, arguments))


def _harmony_reader(tokenizer: Any) -> Callable[[str], Written]:
    """Reads harmony's completions: `analysis` is reasoning, `final` the answer, a recipient makes a call."""
    from vllm.entrypoints.openai.parser.harmony_utils import get_encoding
    from vllm.parser.harmony import HarmonyParser
    from vllm.reasoning.gptoss_reasoning_parser import GptOssReasoningParser
    from vllm.tool_parsers.gptoss_tool_parser import GptOssToolParser

    class Parser(HarmonyParser):
        reasoning_parser_cls = GptOssReasoningParser
        tool_parser_cls = GptOssToolParser

    request = ChatCompletionRequest(messages=[], model="", seed=None)

    def read_harmony(text: str) -> Written:
        ids = get_encoding().encode(text, allowed_special="all")
        try:
            reasoning, answer, calls = Parser(tokenizer).parse(text, request, True, ids)
        except Exception as error:  # the policy's text met a parser that did not expect it
            return Written("", "", malformed=f"the message cannot be read: {error}")
        reasoning, answer = (reasoning or "").strip(), (answer or "").strip()
        if any(mark in answer for mark in _HARMONY):  # text that it could make nothing of
            return Written(
                reasoning, "", malformed="a message has to be written in harmony's channels"
            )
        try:
            return Written(
                reasoning,
                answer,
                tuple(map(sent, map(_call, calls or ()))),
                thought=bool(reasoning),
            )
        except MalformedCall as error:
            return Written(reasoning, answer, malformed=str(error), thought=bool(reasoning))

    return read_harmony
