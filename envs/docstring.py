"""Reads a tool's docstring for the policy: a summary, and a text for each argument.

Read are the sections of Google's and NumPy's style, and the fields of Sphinx (`:param n:`) and Epydoc.
"""

import inspect
import re
from dataclasses import dataclass, field

# Opens a section or a field, which ends the summary.
_SECTION = re.compile(r"(:|@)[a-z]+.*:|[A-Z][A-Za-z ]*:\s*$|-{3,}\s*$")
_RULE = re.compile(r"-{3,}\s*$")


@dataclass(frozen=True)
class Docs:
    """E.g. `Docs("n plus n", {"n": "a whole number"})`; `summary` is the first paragraph on one line."""

    summary: str = ""
    arguments: dict[str, str] = field(default_factory=dict[str, str])


def docs_of(docstring: str | None) -> Docs:
    """Read a docstring; one that follows no style has a summary alone."""
    text = inspect.cleandoc(docstring or "")
    if "\n" not in text:
        return Docs("" if _SECTION.match(text) else text)
    from docstring_parser import ParseError, parse

    try:
        # Below a line of ours, since a docstring may begin with its arguments.
        params = parse(f"-\n\n{text}").params
    except ParseError:
        params = []
    arguments = {
        name.strip().lstrip("*"): " ".join((one.description or "").split())
        for one in params
        for name in one.arg_name.split(",")
    }
    return Docs(_summary(text.splitlines()), {k: v for k, v in arguments.items() if v})


def _summary(lines: list[str]) -> str:
    kept: list[str] = []
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if not line.strip() or _SECTION.match(line) or _RULE.match(below):
            break
        kept.append(line.strip())
    return " ".join(kept)
