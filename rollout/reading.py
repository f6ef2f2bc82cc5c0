"""Reads what a policy wrote: its reasoning, its answer and its tool calls, by the format of its checkpoint.

Flows in: a completion's text without its end mark. Flows out: `Written`. A thought that is not ended is no
answer, and a call in a thought is none: thoughts are taken out first, and only what is left is looked at for
calls. A call that cannot be read is the policy's fault: a sentence that goes back to it.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from envs.message import ToolCall, ToolSchema
from rollout.format import Format
from rollout.thought import split_thought, thought_end
from rollout.tool_format import MalformedCall, own_reader

# Reads one block of calls, its marks included; raises MalformedCall.
BlockReader = Callable[[str, Sequence[ToolSchema]], Sequence[ToolCall]]
# What walks through a value one level at a time reaches so far anywhere.
DEEPEST = 100
MOST_BROKEN = 50
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Written:
    """One completion taken apart: `Written("2 + 2 …", "It is 4.", ())`.

    malformed: why a call that the text opens cannot be read, for the policy; then there are no calls, and the
    answer holds all that is no reasoning. thought: there are a thought's marks, be there nothing in it.
    said: all that is no reasoning, calls as they were written; "" where a reader does not say.
    """

    reasoning: str
    answer: str
    calls: tuple[ToolCall, ...] = ()
    malformed: str = ""
    thought: bool = False
    said: str = field(default="", compare=False)


def read(
    text: str,
    tools: Sequence[ToolSchema],
    format: Format,
    *,
    thinking: bool = False,
    block: BlockReader | None = None,
) -> Written:
    """Take a completion apart.

    tools: those that the policy was told of, whose schemas some parsers type arguments by. thinking: the text
    begins in the middle of a thought. block: reads calls; None: `rollout.tool_format` does, for the formats
    that it knows.
    """
    block = _once(block or own_reader(format.name))
    if format.bare and not thinking and re.match(format.bare, text):
        reasoning, rest = "", text  # all of it is calls, whose strings may hold marks
    else:
        reasoning, rest = _without_thoughts(text, format, block, tools, thinking)
    if not format.opens and not (format.bare and re.match(format.bare, rest)):
        return Written(reasoning, rest.strip(), thought=rest != text)
    try:
        answer, calls = _calls(rest, tools, format, block)
    except MalformedCall as error:
        return Written(reasoning, rest.strip(), malformed=str(error), thought=rest != text)
    return Written(reasoning, answer, calls, thought=rest != text, said=rest.strip())


def _once(block: BlockReader) -> BlockReader:
    """The reader of one text, which looks at each block once."""
    found: dict[str, Sequence[ToolCall] | MalformedCall] = {}

    def read_once(text: str, tools: Sequence[ToolSchema]) -> Sequence[ToolCall]:
        if text not in found:
            try:
                found[text] = block(text, tools)
            except MalformedCall as error:
                found[text] = error
        if isinstance(result := found[text], MalformedCall):
            raise result
        return result

    return read_once


def _calls(
    rest: str, tools: Sequence[ToolSchema], format: Format, block: BlockReader
) -> tuple[str, tuple[ToolCall, ...]]:
    if format.bare:
        _check_objects(rest)
        return "", _read(rest, tools, block)
    plain: list[str] = []
    calls: list[ToolCall] = []
    at = 0
    while (start := rest.find(format.opens, at)) >= 0:
        plain.append(rest[at:start])
        at = _block_end(rest, start, format)
        written = rest[start:at]
        if not _complete(rest, start, at, format):
            end = format.closes or "its arguments, a JSON object"
            raise MalformedCall(f"a tool call has to end with {end}")
        calls += _read(written, tools, block)
    plain.append(rest[at:])
    if format.closes and any(format.closes in part for part in plain):
        raise MalformedCall(f"{format.closes} without {format.opens} before it")
    return "".join(plain).strip(), tuple(calls)


def _check_objects(text: str) -> None:
    """Raise MalformedCall where calls without marks begin as JSON and go on as something else."""
    at = text.find("{")
    if at < 0 or "[" in text[:at]:  # calls as Python writes them
        return
    while at < len(text):
        end = _json_end(text, at)
        if end == at:
            raise MalformedCall("tool calls have to be JSON objects, with ; between them")
        at = _space_end(text, end + text.startswith((";", ","), end))


def _read(written: str, tools: Sequence[ToolSchema], block: BlockReader) -> tuple[ToolCall, ...]:
    calls = tuple(block(written, tools))
    if not calls:
        raise MalformedCall("a tool call was opened and none can be read")
    return tuple(map(sent, calls))


def sent(call: ToolCall) -> ToolCall:
    """A call that any tool can be sent. Raises MalformedCall for arguments that are no JSON to others."""
    if not call.name.strip():
        raise MalformedCall("a tool call has to name a tool")
    if flaw := flaw_of(call.arguments):
        raise MalformedCall(f"{call.name}: {flaw}")
    return call


def flaw_of(value: object) -> str:
    """Say what others refuse in a JSON value: a number that is not finite, deep nesting; "" for nothing."""
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        if depth > DEEPEST:
            return f"arguments may nest {DEEPEST} deep"
        if isinstance(one, float) and not math.isfinite(one):
            return "numbers have to be finite: JSON has no NaN and no Infinity"
        inside: Iterable[object] = ()
        if isinstance(one, dict):
            inside = cast(dict[str, object], one).values()
        elif isinstance(one, list):
            inside = cast(list[object], one)
        left += [(each, depth + 1) for each in inside]
    return ""


def _without_thoughts(
    text: str, format: Format, block: BlockReader, tools: Sequence[ToolSchema], thinking: bool
) -> tuple[str, str]:
    def call_end(text: str, body: int) -> int:
        start = body - len(format.opens)
        end = _block_end(text, start, format)
        written = text[start:end]
        try:
            if _complete(text, start, end, format) and block(written, tools):
                return end
        except MalformedCall:
            pass
        # What looks like a call may be a thought that speaks of one.
        return thought_end(text, body, end)

    return split_thought(text, format.opens, call_end, thinking=thinking)


def _block_end(text: str, start: int, format: Format) -> int:
    """Where the block that opens at `start` ends, its closing mark included, or the text does.

    A mark inside JSON, or inside a string of Python's, is part of it. After MOST_BROKEN braces that open no
    JSON the rest is plain text: each costs a look at all that follows.
    """
    at = _arguments(text, start, format)
    if not format.closes:
        after = _json_end(text, at)
        return after if after > at else len(text)
    quoted = r"""|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""" if format.python else ""
    marks = re.compile(re.escape(format.closes) + r"|\{" + quoted, re.S)
    broken = 0
    while broken < MOST_BROKEN and (found := marks.search(text, at)):
        if found[0] == format.closes:
            return found.end()
        at = _json_end(text, found.start()) if found[0] == "{" else found.end()
        broken += at == found.start()
        at = max(at, found.start() + 1)
    end = text.find(format.closes, at)
    return len(text) if end < 0 else end + len(format.closes)


def _complete(text: str, start: int, end: int, format: Format) -> bool:
    """True if the block in text[start:end] has what ends it."""
    if format.closes:
        return text.endswith(format.closes, start, end)
    return _arguments(text, start, format) < _json_end(text, _arguments(text, start, format)) == end


def _arguments(text: str, start: int, format: Format) -> int:
    """Where what stands behind a block's opening mark begins; without closing marks, its JSON object."""
    at = start + len(format.opens)
    if format.closes:
        return at
    begin = text.find("{", at)
    return len(text) if begin < 0 else begin


def _json_end(text: str, start: int) -> int:
    """Where the JSON object or list that begins at `start` ends, blanks included; `start` where none does."""
    at = _space_end(text, start)
    if text.startswith(("{", "["), at):
        try:
            return _space_end(text, _DECODER.raw_decode(text, at)[1])
        except (ValueError, RecursionError):
            pass
    return start


def _space_end(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    return space.end() if space else start
