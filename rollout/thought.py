"""Splits what a policy wrote into its thought and its answer: no call in a thought is made, nobody judges it.

Flows in: a completion's text. Flows out: (thought, the rest). A thought begins with a mark that the policy
wrote, or that the template's prompt ended with; one that is not ended goes on to the end of the text. Marks
inside a tool call belong to the call.
"""

import re
from collections.abc import Callable

# How a thought begins and ends: Qwen, DeepSeek, GLM and others; LongCat; Mistral; Cohere; Seed; Gemma.
THOUGHTS = {
    "<think>": "</think>",
    "<longcat_think>": "</longcat_think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<seed:think>": "</seed:think>",
    "<|channel>thought": "<channel|>",
}
_ENDS = set(THOUGHTS.values())


def opens_thought(prompt: str) -> bool:
    """True if a prompt leaves the policy in the middle of a thought, as its template begins one."""
    return prompt.rstrip().endswith(tuple(THOUGHTS))


def ends_thought(prompt: str) -> bool:
    """True if a prompt ends with a thought of its own, an empty one, so that the policy writes none."""
    return prompt.rstrip().endswith(tuple(_ENDS))


def split_thought(
    text: str, call: str, call_end: Callable[[str, int], int], *, thinking: bool = False
) -> tuple[str, str]:
    """The thought in a text and the rest of it. `call` begins a tool call ("": there are none),
    `call_end(text, at)` is its end.

    thinking: the text begins in the middle of a thought. An end without a beginning ends a thought that began
    with the text: an unknown template's prompt may have opened it.
    """
    thoughts: list[str] = []
    rest: list[str] = []
    marks = re.compile("|".join(map(re.escape, filter(None, (call, *THOUGHTS, *_ENDS)))))
    at = 0
    if thinking:
        first = _first(text, _ENDS)
        thoughts.append(text[: first[0]])
        at = first[1]
    kept = at
    while found := marks.search(text, at):
        if found[0] == call:
            at = call_end(text, found.end())
        elif found[0] in THOUGHTS:
            rest.append(text[kept : found.start()])
            end = _first(text, {THOUGHTS[found[0]]}, found.end())
            thoughts.append(text[found.end() : end[0]])
            kept = at = end[1]
        else:
            thoughts, rest = [text[: found.start()]], []
            kept = at = found.end()
    rest.append(text[kept:])
    return "\n".join(filter(None, map(str.strip, thoughts))), "".join(rest)


def thought_end(text: str, start: int, end: int) -> int:
    """Where the first mark in text[start:end] that ends a thought begins, or `end`."""
    return _first(text, _ENDS, start, end)[0]


def _first(text: str, marks: set[str], start: int = 0, end: int | None = None) -> tuple[int, int]:
    """(start, end) of the first of these marks in text[start:end], or of the end of that."""
    last = len(text) if end is None else end
    found = re.compile("|".join(map(re.escape, marks))).search(text, start, last)
    return found.span() if found else (last, last)
