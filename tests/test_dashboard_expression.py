"""Regular expressions of the dashboard's visitors: what Python's own engine finds, in bounded time."""

import random
import re
import time

import pytest

from rl.dashboard.expression import MOST_CHARACTERS, found_in

ATOMS = (
    *("a", "b", "/", "_", ".", "[ab]", "[^a]", r"\w", r"\d", r"\b", "^", "$", r"\W", "[a-c/]"),
    *(r"\A", "(?i:A)"),
)
KEYS = [f"{kind}/environment_{n}/reward" for kind in ("rollout", "eval") for n in range(500)]


def written(rng: random.Random, depth: int) -> str:
    choice = rng.random()
    if depth == 0 or choice < 0.35:
        return rng.choice(ATOMS)
    if choice < 0.55:
        return written(rng, depth - 1) + written(rng, depth - 1)
    if choice < 0.7:
        return f"(?:{written(rng, depth - 1)}|{written(rng, depth - 1)})"
    more = rng.choice(("*", "+", "?", "{2}", "{1,3}", "*?", "{2,}"))
    return f"(?:{written(rng, depth - 1)}){more}"


def test_it_finds_what_pythons_own_engine_finds():
    rng = random.Random(5)
    for _ in range(1000):
        expression = written(rng, 4)
        texts = {"".join(rng.choices("abAB/_1", k=rng.randrange(1, 7))) for _ in range(5)}
        want = sorted(text for text in texts if re.search(expression, text))
        assert found_in(expression, texts) == want, expression


@pytest.mark.parametrize(
    "expression",
    [
        "(.*.*)*x$",
        "(a+)+$",
        "(.|.)*X",
        r"(\w+\s?)*$X",
        "((((((((.*)*)*)*)*)*)*)*)*X",
        "(" * 150 + ".*" + ")*" * 150 + "X$",
        "a{1000000000}",
        "(?:(?:.{0,65535}){0,65535}){0,65535}X",
        "(?:.?){400}.{400}$",
        "(?=(.+)+$)X|(?<=.)X",
        "(?=(?=(?=(?=.*.*)*)*)*)X",
        "(" * 5000 + ")" * 5000,
        "[" * 400,
        r"(.*)*\1X",
        "(?>.*)*X",
        "(?:" * 160,
    ],
    ids=lambda expression: expression[:24],
)
def test_no_expression_takes_long(expression):
    begin = time.process_time()
    for _ in range(3):  # a page asks again and again
        try:
            found_in(expression, [*KEYS, "a" * 10**6])
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
    assert time.process_time() - begin < 3.0


def test_what_cannot_be_searched_for_is_one_sentence():
    for expression, said in (
        ("(", "is no regular expression: missing )"),
        (r"(a)\1", r"is no regular expression: invalid escape sequence: \1"),
        ("a*+", "is no regular expression: bad repetition operator: *+"),
        ("(?=a)", "is no regular expression: invalid perl operator: (?="),
        ("\ud800", "is no regular expression"),
        ("(?:.?){400}.{400}$", "takes too long to search for"),
        ("a" * (MOST_CHARACTERS + 1), "is too long: 500 characters at most"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            found_in(expression, KEYS)
