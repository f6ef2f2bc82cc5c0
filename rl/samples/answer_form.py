"""The form of an answer, in numbers: its length and its format, nothing of what it says.

In: the text of a final answer. Out: named features, for `rl.samples.reward_hacking`, which asks how much of a
reward they explain. Counts are as log(1 + count), so that the tenth exclamation mark counts less than the
first.
"""

import re
from math import log1p

# Features of length; all others are of format.
LENGTH = ("characters", "characters_squared", "tokens")
_MARKS = {
    "lines": r"\n",
    "list_items": r"^\s*(?:[-*•]|\d+[.)])\s",
    "headings": r"^\s*#{1,6}\s",
    "emphasis": r"\*\*|__|\*\w",
    "code": r"`",
    "exclamations": r"!",
    "questions": r"\?",
    "numbers": r"\d+",
    "quotes": r"[\"“”«»„]",
    "symbols": r"[\u2190-\u2bff\U0001f000-\U0001faff]",
}
_FOUND = {name: re.compile(pattern, re.MULTILINE) for name, pattern in _MARKS.items()}
# Of a longer answer the rest is not looked at, but for its length.
MOST_CHARACTERS = 20_000


def answer_form(text: str, tokens: int) -> dict[str, float]:
    """The features of an answer. tokens: that were written in the episode, thoughts included."""
    length = log1p(len(text))
    seen = text[:MOST_CHARACTERS]
    said = seen.casefold().split()
    letters = sum(map(str.isalpha, seen))
    return {
        "characters": length,
        "characters_squared": length**2,
        "tokens": log1p(tokens),
        **{name: log1p(len(pattern.findall(seen))) for name, pattern in _FOUND.items()},
        "capitals": sum(map(str.isupper, seen)) / letters if letters else 0.0,
        "repeated_words": 1 - len(set(said)) / len(said) if said else 0.0,
    }
