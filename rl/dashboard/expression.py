"""Regular expressions of visitors, searched in bounded time: no expression can hold the dashboard up.

In: an expression in Python's syntax, and texts. Out: those in which it is found. A search moves the set of
all positions reached so far, as the bits of a number, so nothing is tried twice and nothing backtracks
(K. Thompson, Regular Expression Search Algorithm, CACM 1968). An expression that still takes more than its
share of work is refused, and so are parts that need memory of one path, such as a back-reference.
"""

import re
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache

# The standard library's own parser: its syntax and its errors are those that visitors know.
from re import _parser as parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

MOST_CHARACTERS = 500
# A text is looked at as far as this.
_MOST_TEXT = 1000
# Steps of all searches of one question: a few tenths of a second. An ordinary one takes 10 to 50 a text.
_WORK, _WORK_PER_TEXT = 200_000, 100
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda char: char.isalnum() or char == "_",
}
_IGNORE, _DOTALL = re.IGNORECASE.value, re.DOTALL.value


class _Text:
    """One text in a search: where each of its characters stands, and the work that is left."""

    def __init__(self, text: str, work: list[int]) -> None:
        self.size, self.work = len(text), work
        self.chars: dict[str, int] = {}
        for i, char in enumerate(text):
            self.chars[char] = self.chars.get(char, 0) | 1 << i
        self.ends = 1 << self.size | (1 << self.size - 1 if text.endswith("\n") else 0)

    @property
    def edges(self) -> int:
        """Positions between a character of a word and one that is none."""
        words = self.where(_CATEGORIES["WORD"])
        return words ^ words << 1

    def where(self, accepts: Callable[[str], bool]) -> int:
        """Positions before a character that is accepted."""
        return sum(places for char, places in self.chars.items() if accepts(char))


# Moves positions of a text, as bits, to those after a part of the expression.
_Step = Callable[[_Text, int], int]


@lru_cache(maxsize=64)
def _search(expression: str, texts: tuple[str, ...]) -> tuple[str, ...] | ValueError:
    shown = repr(expression if len(expression) <= 80 else f"{expression[:80]}…")
    if len(expression) > MOST_CHARACTERS:
        return ValueError(f"{shown} is too long: {MOST_CHARACTERS} characters at most")
    try:
        with warnings.catch_warnings(action="ignore"):  # of syntax that may change one day
            tree = parser.parse(expression)
        step = _sequence(tree, tree.state.flags)
        work = [_WORK + _WORK_PER_TEXT * len(texts)]
        return tuple(text for text in texts if _found(step, text[:_MOST_TEXT], work))
    except _Unsupported as error:
        return ValueError(f"{shown} cannot be searched for: {error} is not supported")
    except TimeoutError:
        return ValueError(f"{shown} takes too long to search for; nest fewer repetitions")
    except (re.error, RecursionError, OverflowError) as error:
        return ValueError(f"{shown} is no regular expression: {error}")


def found_in(expression: str, texts: Iterable[str]) -> list[str]:
    """Texts in which the expression is found, sorted. Raises ValueError with one sentence."""
    answer = _search(expression, tuple(sorted(texts)))
    if isinstance(answer, ValueError):
        raise answer
    return list(answer)


class _Unsupported(Exception):
    """Part of an expression that one pass over a text cannot decide, by its name."""


def _found(step: _Step, text: str, work: list[int]) -> bool:
    one = _Text(text, work)
    return step(one, (1 << one.size + 1) - 1) != 0


def _sequence(parts: Iterable[Any], flags: int) -> _Step:
    steps = [_part(str(name), value, flags) for name, value in parts]

    def move(text: _Text, at: int) -> int:
        for step in steps:
            if not at:
                return 0
            text.work[0] -= 1
            if text.work[0] < 0:
                raise TimeoutError
            at = step(text, at)
        return at

    return move


def _part(name: str, value: Any, flags: int) -> _Step:
    match name:
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN" | "CATEGORY" | "RANGE":
            return _one_character(name, value, flags)
        case "AT":
            return _place(str(value))
        case "BRANCH":
            ways = [_sequence(way, flags) for way in value[1]]
            return lambda text, at: _any_way(ways, text, at)
        case "SUBPATTERN":
            _, more, fewer, inner = value
            return _sequence(inner, (flags | more) & ~fewer)
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, inner = value
            return _repeated(_sequence(inner, flags), int(least), int(most))
        case "ASSERT" | "ASSERT_NOT":
            return _looked(_sequence(value[1], flags), name == "ASSERT", _behind(value))
        case "FAILURE":
            return lambda text, at: 0
        case _:
            said = (
                "a back-reference" if name.startswith("GROUPREF") else "a possessive or atomic part"
            )
            raise _Unsupported(said)


def _any_way(ways: list[_Step], text: _Text, at: int) -> int:
    reached = 0
    for way in ways:
        reached |= way(text, at)
    return reached


def _one_character(name: str, value: Any, flags: int) -> _Step:
    accepts = _accepts(name, value, flags)
    if name == "LITERAL" and not flags & _IGNORE:
        char = chr(value)
        return lambda text, at: (at & text.chars.get(char, 0)) << 1
    return lambda text, at: (at & text.where(accepts)) << 1


def _accepts(name: str, value: Any, flags: int) -> Callable[[str], bool]:
    known: dict[str, bool] = {}

    def accepts(char: str) -> bool:
        if char not in known:
            forms = {char, char.lower(), char.upper()} if flags & _IGNORE else {char}
            positive = [("LITERAL", value)] if name == "NOT_LITERAL" else [(name, value)]
            refused = name == "NOT_LITERAL"
            if name == "IN":
                positive = [(str(kind), what) for kind, what in value]
                refused = positive[0][0] == "NEGATE"
            any_form = any(_is(form, *one, flags) for one in positive for form in forms)
            known[char] = any_form != refused
        return known[char]

    return accepts


def _is(char: str, kind: str, value: Any, flags: int) -> bool:
    match kind:
        case "LITERAL":
            return ord(char) == value if len(char) == 1 else False
        case "RANGE":
            return len(char) == 1 and value[0] <= ord(char) <= value[1]
        case "ANY":
            return char != "\n" or bool(flags & _DOTALL)
        case "CATEGORY":
            name = str(value).removeprefix("CATEGORY_")
            return _CATEGORIES[name.removeprefix("NOT_")](char) != name.startswith("NOT_")
        case _:
            return False


def _place(name: str) -> _Step:
    match name:
        case "AT_BEGINNING" | "AT_BEGINNING_STRING":
            return lambda text, at: at & 1
        case "AT_END":
            return lambda text, at: at & text.ends
        case "AT_END_STRING":
            return lambda text, at: at & 1 << text.size
        case "AT_BOUNDARY":
            return lambda text, at: at & text.edges
        case _:  # AT_NON_BOUNDARY
            return lambda text, at: at & ~text.edges


def _repeated(step: _Step, least: int, most: int) -> _Step:
    def move(text: _Text, at: int) -> int:
        # A longer way than the text has positions stays somewhere, so it leads nowhere else.
        longest = text.size + 1
        for _ in range(min(least, longest)):
            if not at:
                return 0
            at = step(text, at)
        reached = new = at
        for _ in range(min(most - least, longest)):
            new = step(text, new) & ~reached
            if not new:
                break
            reached |= new
        return reached

    return move


def _looked(step: _Step, wanted: bool, behind: int | None) -> _Step:
    """Positions at which the part is there, or is not: after them, or `behind` characters before them."""

    def move(text: _Text, at: int) -> int:
        kept = 0
        for i in range(text.size + 1):
            if not at >> i & 1:
                continue
            if behind is None:
                there = step(text, 1 << i) != 0
            else:
                there = i >= behind and step(text, 1 << i - behind) >> i & 1 == 1
            kept |= (there == wanted) << i
        return kept

    return move


def _behind(value: Any) -> int | None:
    """Width of what is looked for before a position; None where it is looked for after it."""
    direction, inner = value
    if direction >= 0:
        return None
    low, high = inner.getwidth()
    if low != high:
        raise re.error("look-behind requires fixed-width pattern")
    return int(low)
