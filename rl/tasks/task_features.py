"""Features of a task for a forecast: plain JSON, hashed into a vector of fixed width without any model.

A number adds the logarithm of its size at the place of its name; a word adds one at the place of name and
word, by the square root of the number of words; digits in a text count by how many they are, for their
values say little. Two names may share a place, each with a sign of its own (arXiv 0902.2206).
"""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from math import copysign, isfinite, log1p, sqrt

import numpy as np
from numpy.typing import NDArray

WIDTH = 64
_WORD = re.compile(r"\d+|[^\W\d_]+")
# Of a long text its beginning.
MOST_WORDS = 500


def encoded(facts: object, width: int = WIDTH) -> NDArray[np.float64]:
    """A vector of plain JSON, shape (width)."""
    vector = np.zeros(width)
    for name, value in _values(facts, ""):
        place, sign = _place(name, width)
        vector[place] += sign * value
    return vector


def _values(facts: object, name: str) -> Iterator[tuple[str, float]]:
    """Names of features, and how much of each there is."""
    match facts:
        case dict():
            for key, value in facts.items():  # pyright: ignore[reportUnknownVariableType]
                yield from _values(value, f"{name}.{key}")  # pyright: ignore[reportUnknownArgumentType]
        case list() | tuple():
            yield f"{name}#", log1p(len(facts))  # pyright: ignore[reportUnknownArgumentType]
            for value in facts:  # pyright: ignore[reportUnknownVariableType]
                yield from _values(value, f"{name}[]")  # pyright: ignore[reportUnknownArgumentType]
        case bool() | None:
            yield f"{name}={facts}", 1.0
        case float() if not isfinite(facts):  # one of these would make every mean of a graph NaN
            yield f"{name}={facts}", 1.0
        case int() | float():
            yield name, copysign(log1p(abs(facts)), facts)
        case _:
            words = _WORD.findall(str(facts).lower())[:MOST_WORDS]
            yield f"{name}#", log1p(len(words))
            for word in words:
                kind = f"{len(word)} digits" if word.isdigit() else word
                yield f"{name}={kind}", 1 / sqrt(len(words))


@lru_cache(maxsize=100_000)
def _place(name: str, width: int) -> tuple[int, float]:
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return number // 2 % width, 1.0 if number % 2 else -1.0
