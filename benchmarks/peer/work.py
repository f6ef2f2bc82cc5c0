"""Tasks of the comparison: plain data and functions that both sides import, without any package.

A task is `{"a": 4, "steps": [["multiply", "times", 7], ["add", "plus", 5]]}`, and its prompt
`4 times 7 then plus 5 ?`.
"""

import random
from collections.abc import Sequence
from typing import TypedDict

WORDS = {"add": ("plus", "added to"), "multiply": ("times", "by"), "subtract": ("minus", "less")}
LARGEST = 9
# A calculation of so many steps takes as many tool calls and the answer: three to five turns.
CHAIN_STEPS = (2, 3, 4)
# Turns of such a calculation, one more than an errorless one needs, and tokens after its opening.
CHAIN_TURNS, CHAIN_TOKENS = 6, 160
# Tokens of a completion in one turn, and the ids of 0 to 9: the small tokenizer keeps digits single.
DIGITS_TOKENS = 64
DIGIT_IDS = frozenset(range(29, 39))
# Seconds of a slow tool call are lognormal: this median, this standard deviation of the logarithm; the
# 99th percentile is 1 s, the mean 0.11 s.
SLOW_MEDIAN, SLOW_SIGMA = 0.05, 1.288


class Data(TypedDict):
    """One task: a number, and steps of operation, its word, and its number."""

    a: int
    steps: list[tuple[str, str, int]]


class Job(TypedDict):
    """The work of a side: everything that has to be equal on both.

    completion_tokens: of a trajectory, after its opening; tool results count. turns: of the policy.
    """

    kind: str
    policy: str
    dtype: str
    updates: int
    groups: int
    group_size: int
    lr: float
    turns: int
    completion_tokens: int
    seed: int
    train: list[Data]
    heldout: list[Data]


class Outcome(TypedDict):
    """Measurements of a side. seconds: of all updates, start-up and evaluation left out."""

    seconds: float
    trajectories: int
    policy_tokens: float
    turns: float
    reward_after: float
    cpu_seconds: float


def draw(rng: random.Random, steps: int) -> Data:
    """A random task of so many steps."""
    ops = [rng.choice(sorted(WORDS)) for _ in range(steps)]
    asked = [(op, rng.choice(WORDS[op]), rng.randint(0, LARGEST)) for op in ops]
    return {"a": rng.randint(0, LARGEST), "steps": asked}


def opening(data: Data) -> str:
    """The user's message."""
    asked = " then ".join(f"{word} {b}" for _, word, b in data["steps"])
    return f"{data['a']} {asked} ?"


def apply(op: str, a: int, b: int) -> int:
    """One step's result."""
    return {"add": a + b, "multiply": a * b, "subtract": a - b}[op]


def expected(data: Data) -> int:
    """The last step's result."""
    value = data["a"]
    for op, _, b in data["steps"]:
        value = apply(op, value, b)
    return value


def digit_share(completion_ids: Sequence[int]) -> float:
    """How much of the longest completion is digits.

    A policy with random weights earns some of it, and a completion does not get shorter as it learns: both
    sides write about as many tokens in every step. Ids and no text, for a cut-off answer counts as well.
    """
    return sum(id in DIGIT_IDS for id in completion_ids) / DIGITS_TOKENS


def slow_seconds(rng: random.Random) -> float:
    """How long a slow tool call takes."""
    return SLOW_MEDIAN * rng.lognormvariate(0.0, SLOW_SIGMA)
