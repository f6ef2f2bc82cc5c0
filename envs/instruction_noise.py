"""Noise on what a user asks: other wordings, detail that does not matter, typing errors, detail left out.

Flows in: a clean text, the words in it that carry the task (`load_bearing`), a seeded random generator.
Flows out: the same request, written as a person in a hurry writes. All functions are pure.

Never touched, except by `withhold`: words that occur in the task's data or in the tools' schemas, numbers,
quoted text, names (any word with a capital inside a sentence), anything that is not a plain word (paths,
addresses, code), and words that turn a sentence (`not`, `only`, `first`). What is added holds none of them.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

from envs.message import JsonObject, ToolSchema

# Wordings that may stand for a word; only words that mean one thing wherever they stand.
WORDINGS = {
    "please": ("kindly",), "show": ("display",), "tell": ("inform",), "begin": ("start",),
    "require": ("need",), "fetch": ("get",), "create": ("make",), "buy": ("purchase",),
    "purchase": ("buy",), "assist": ("help",), "verify": ("check",), "alter": ("change",),
    "delete": ("remove",), "remove": ("delete",), "respond": ("reply",), "locate": ("find",),
    "big": ("large",), "large": ("big",), "small": ("little",), "entire": ("whole",),
    "whole": ("entire",), "wrong": ("incorrect",), "incorrect": ("wrong",),
    "everybody": ("everyone",), "everyone": ("everybody",), "should": ("ought to",),
    "calculate": ("compute", "work out"), "compute": ("calculate", "work out"),
}  # fmt: skip
# Words before and after a text in which no word can be replaced.
FRAMES = (("hello:", ""), ("my request:", ""), ("could you help:", ""), ("", "thanks"))
REDUNDANT = (
    "i am writing this on my phone.", "sorry about my brief note.", "coffee here is excellent.",
    "my keyboard is rather old.", "hope you are well.", "greetings from sunny weather.",
)  # fmt: skip
# A typing error or another word in place of one of these could change what is asked for.
_TURNING = frozenset((
    "not", "no", "never", "none", "neither", "nor", "only", "all", "any", "every", "each",
    "both", "either", "except", "without", "unless", "if", "else", "then", "when", "while",
    "until", "before", "after", "and", "or", "but", "first", "second", "third", "last",
    "next", "least", "most", "more", "less", "fewer", "than", "left", "right", "above",
    "below", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "twenty", "thirty", "hundred", "thousand", "half", "quarter",
    "double", "once", "twice", "up", "down", "even", "odd", "same", "other", "greater",
    "smaller", "larger", "longer", "shorter",
))  # fmt: skip
_CLAUSE_OPENERS = frozenset(
    ("and", "then", "of", "from", "to", "for", "with", "in", "at", "by", "on")
)
_QUOTED = re.compile(
    r"```.*?```|`[^`\n]+`|\"[^\"\n]+\"|“[^”]+”|«[^»]+»|(?<!\w)'[^'\n]+'(?!\w)", re.DOTALL
)
_PLAIN = re.compile(r"([A-Za-z]+)([.,;:!?]*)")
_WORD = re.compile(r"\w+")
SHORTEST_TYPO = 4


@dataclass(frozen=True)
class Piece:
    """A part of a text: white space, a word that may change, or one (or a quotation) that may not."""

    text: str
    kind: Literal["space", "free", "kept"]


def load_bearing(
    data: object, tools: Sequence[ToolSchema], messages: Sequence[str] = ()
) -> frozenset[str]:
    """The words, in lower case, that carry a task.

    Those of its data, of the names and values in the tools' schemas, and of what is quoted, a name or no
    plain word somewhere in the opening: `goods(name, price)` makes a `price` elsewhere one of them.
    """
    texts = [*_strings(data), *(t.name for t in tools)]
    for schema in tools:
        texts += _strings(schema.parameters)
    for message in messages:
        texts += [piece.text for piece in pieces(message, frozenset()) if piece.kind == "kept"]
    words = {w for text in texts for w in _WORD.findall(text.lower())}
    # `set_status` is also asked for as "set the status".
    return frozenset(words | {part for word in words for part in word.split("_") if part})


def pieces(text: str, words: frozenset[str]) -> list[Piece]:
    """The text, cut at white space and around quotations; end to end the pieces are the text."""
    found: list[Piece] = []
    end = 0
    for quoted in _QUOTED.finditer(text):
        _cut(found, text[end : quoted.start()], words)
        found.append(Piece(quoted.group(), "kept"))
        end = quoted.end()
    _cut(found, text[end:], words)
    return found


def paraphrase(text: str, words: frozenset[str], rng: random.Random) -> str:
    """The text in other words; where no word has another, with words before or after it."""
    changed = "".join(_reword(piece, words, rng) for piece in pieces(text, words))
    if changed != text:
        return changed
    frames = [f for f in FRAMES if not _holds(" ".join(f), words)]
    return _join(rng.choice(frames), text) if frames else text


def add_redundant(text: str, words: frozenset[str], rng: random.Random) -> str:
    """The text with a sentence before or after it that does not matter."""
    fitting = [sentence for sentence in REDUNDANT if not _holds(sentence, words)]
    if not fitting:
        return text
    sentence = rng.choice(fitting)
    return _join((sentence, "") if rng.random() < 0.5 else ("", sentence), text)


def add_typos(text: str, words: frozenset[str], share: float, rng: random.Random) -> str:
    """The text with a share of its longer free words mistyped."""
    return "".join(
        _mistype(piece.text, words, rng)
        if piece.kind == "free" and rng.random() < share
        else piece.text
        for piece in pieces(text, words)
    )


def withhold(text: str, words: frozenset[str], rng: random.Random) -> str:
    """The text with `...` in place of one of its clauses that carry something, other than the first.

    In a text of one clause it is the last word that carries something. Where nothing does, the text stays
    as it is.
    """
    parts = pieces(text, words)
    starts = [i for i in range(len(parts)) if _opens_clause(parts, i)]
    spans = list(pairwise([*starts, len(parts)]))[1:]
    spans = [(a, b) for a, b in spans if any(_carries(p) for p in parts[a:b])]
    if not spans:
        spans = [(i, i + 1) for i, piece in enumerate(parts) if _carries(piece)][-1:]
    if not spans:
        return text
    first, end = rng.choice(spans)
    while parts[end - 1].kind == "space":
        end -= 1
    return "".join(p.text for p in (*parts[:first], Piece("...", "kept"), *parts[end:]))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in cast(JsonObject, value).items():
            yield str(key)
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in cast(Sequence[object], value):
            yield from _strings(one)
    else:
        yield str(value)


def _cut(found: list[Piece], text: str, words: frozenset[str]) -> None:
    """Append the pieces of a text without quotations."""
    for token in re.split(r"(\s+)", text):
        if not token:
            continue
        if token.isspace():
            found.append(Piece(token, "space"))
            continue
        plain = _PLAIN.fullmatch(token)
        # After a quotation, what follows without a space belongs to it.
        glued = bool(found) and found[-1].kind == "kept"
        free = plain is not None and not glued and _free(plain[1], words, _opens_sentence(found))
        found.append(Piece(token, "free" if free else "kept"))


def _free(word: str, words: frozenset[str], opens: bool) -> bool:
    lower = word.lower()
    cased = word == lower or (opens and word[1:] == lower[1:] and len(word) > 1)
    return cased and lower not in words and lower not in _TURNING


def _opens_sentence(found: Sequence[Piece]) -> bool:
    before = _last_word(reversed(found))
    return before is None or before.text[-1] in ".!?"


def _last_word(found: Iterable[Piece]) -> Piece | None:
    return next((piece for piece in found if piece.kind != "space"), None)


def _reword(piece: Piece, words: frozenset[str], rng: random.Random) -> str:
    plain = _PLAIN.fullmatch(piece.text) if piece.kind == "free" else None
    if plain is None:
        return piece.text
    others = [w for w in WORDINGS.get(plain[1].lower(), ()) if not _holds(w, words)]
    if not others:
        return piece.text
    other = rng.choice(others)
    return (other.capitalize() if plain[1][0].isupper() else other) + plain[2]


def _holds(text: str, words: frozenset[str]) -> bool:
    return any(word in words for word in _WORD.findall(text))


def _join(around: tuple[str, str], text: str) -> str:
    """Words before and after a text. After an open end they stand on a line of their own: in "call it blue
    thanks" they would be part of the name."""
    before, after = around
    lines = "\n" in text
    front = before + ("\n" if lines else " ") if before else ""
    back = (" " if not lines and text.endswith((".", "!", "?")) else "\n") + after if after else ""
    return front + text + back


def _mistype(token: str, words: frozenset[str], rng: random.Random) -> str:
    """Swap, drop or double a letter inside a word in lower case."""
    plain = _PLAIN.fullmatch(token)
    if plain is None or len(plain[1]) < SHORTEST_TYPO or not plain[1].islower():
        return token
    word = plain[1]
    at = rng.randrange(1, len(word) - 1)
    mistyped = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
    return token if mistyped in words or mistyped in _TURNING else mistyped + plain[2]


def _opens_clause(parts: Sequence[Piece], index: int) -> bool:
    if parts[index].kind == "space":
        return False
    last = _last_word(parts[i] for i in range(index - 1, -1, -1))
    if last is None:
        return True
    gap = parts[index - 1]
    if gap.kind != "space":
        return False
    ended = last.text[-1] in ".,;:!?" or "\n" in gap.text
    return ended or parts[index].text.lower() in _CLAUSE_OPENERS


def _carries(piece: Piece) -> bool:
    return piece.kind == "kept" and any(c.isalnum() for c in piece.text)
