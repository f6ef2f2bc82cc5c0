"""Problems for `python_code`: families of functions to write, with parameters, inputs and a solution each.

A problem is (family, parameters, seed); its text, its solution and the inputs it is tried on follow.
The solutions are ours and run in our own process, to say what is right.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from string import Template
from typing import Any

from envs.message import JsonObject

Parameters = JsonObject
NUM_EXAMPLES, NUM_TESTS = 2, 10


@dataclass(frozen=True)
class Family:
    """text and source are templates over the parameters; arguments draws one call of `solve`."""

    difficulty: int
    text: str
    source: str
    parameters: Callable[[random.Random], Parameters]
    arguments: Callable[[random.Random], list[Any]]


def numbers(rng: random.Random, most: int = 9) -> list[int]:
    return [rng.randint(-20, 99) for _ in range(rng.randint(0, most))]


def word(rng: random.Random, letters: str = "abcde", most: int = 8) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randint(1, most)))


def small(low: int, high: int) -> Callable[[random.Random], Parameters]:
    return lambda rng: {"k": rng.randint(low, high)}


def pairs(rng: random.Random) -> list[list[int]]:
    starts = [rng.randint(0, 40) for _ in range(rng.randint(0, 7))]
    return [[start, start + rng.randint(0, 12)] for start in starts]


def grid(rng: random.Random) -> list[str]:
    """A grid whose two corners are free."""
    rows = [[rng.choice("...#123") for _ in range(5)] for _ in range(4)]
    rows[0][0] = rows[-1][-1] = "."
    return ["".join(row) for row in rows]


def program(rng: random.Random) -> list[str]:
    names = ("add", "mul", "dup", "swap", "drop")
    return [
        str(rng.randint(-9, 9)) if rng.random() < 0.5 else rng.choice(names)
        for _ in range(rng.randint(1, 12))
    ]


FAMILIES: dict[str, Family] = {
    "sum_above": Family(
        1,
        "the sum of those values that are greater than $k",
        "def solve(values):\n    return sum(v for v in values if v > $k)\n",
        small(0, 50),
        lambda rng: [numbers(rng)],
    ),
    "multiples": Family(
        1,
        "the values that $k divides, in their order",
        "def solve(values):\n    return [v for v in values if v % $k == 0]\n",
        small(2, 7),
        lambda rng: [numbers(rng)],
    ),
    "repeat": Family(
        1,
        "the string values, backwards, $k times over",
        "def solve(values):\n    return values[::-1] * $k\n",
        small(2, 9),
        lambda rng: [word(rng)],
    ),
    "run_lengths": Family(
        2,
        "a list of [letter, length] for the runs of equal letters in the string values that are at least "
        "$k long",
        """def solve(values):
    runs = []
    for letter in values:
        if runs and runs[-1][0] == letter:
            runs[-1][1] += 1
        else:
            runs.append([letter, 1])
    return [run for run in runs if run[1] >= $k]
""",
        small(1, 3),
        lambda rng: [word(rng, "ab", 14)],
    ),
    "window_sums": Family(
        2,
        "the sums of every $k neighbouring values, from left to right; an empty list where there are fewer",
        "def solve(values):\n    return [sum(values[i : i + $k]) for i in range(len(values) - $k + 1)]\n",
        small(2, 5),
        lambda rng: [numbers(rng)],
    ),
    "shift": Family(
        2,
        "the string values with each small letter moved $k places on in the alphabet, from z to a again; "
        "everything else stays",
        """def solve(values):
    return "".join(
        chr((ord(c) - 97 + $k) % 26 + 97) if "a" <= c <= "z" else c for c in values
    )
""",
        small(1, 25),
        lambda rng: [word(rng, "axyz -Z", 12)],
    ),
    "merge": Family(
        3,
        "the [first, last] intervals in values, merged where they overlap or lie at most $k apart, in rising "
        "order",
        """def solve(values):
    merged = []
    for first, last in sorted(values):
        if merged and first - merged[-1][1] <= $k:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return merged
""",
        small(0, 4),
        lambda rng: [pairs(rng)],
    ),
    "digits": Family(
        3,
        "the whole number values as text in base $k, with 0-9 and a-z as digits and a minus sign where it is "
        "negative",
        """def solve(values):
    digits, rest = "", abs(values)
    while rest or not digits:
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest % $k] + digits
        rest //= $k
    return "-" + digits if values < 0 else digits
""",
        small(2, 36),
        lambda rng: [rng.choice((0, rng.randint(-50, 50), rng.randint(-(10**9), 10**9)))],
    ),
    "top_words": Family(
        3,
        "the $k most frequent words of the list values as [word, count], the more frequent first, and of "
        "equally frequent ones the alphabetically first",
        """def solve(values):
    counts = {}
    for word in values:
        counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [list(pair) for pair in ranked[:$k]]
""",
        small(1, 5),
        lambda rng: [[word(rng, "ab", 2) for _ in range(rng.randint(0, 15))]],
    ),
    "stack": Family(
        4,
        "the stack, bottom first, after the words in values ran: a number is pushed; add and mul replace the "
        "top two by their sum or product modulo $k; dup pushes the top again; swap exchanges the top two; "
        "drop removes the top. A word that finds too few numbers does nothing",
        """def solve(values):
    stack = []
    for word in values:
        need = {"add": 2, "mul": 2, "swap": 2, "dup": 1, "drop": 1}.get(word)
        if need is None:
            stack.append(int(word))
        elif len(stack) < need:
            continue
        elif word == "dup":
            stack.append(stack[-1])
        elif word == "drop":
            stack.pop()
        else:
            b, a = stack.pop(), stack.pop()
            if word == "swap":
                stack += [b, a]
            else:
                stack.append((a + b if word == "add" else a * b) % $k)
    return stack
""",
        small(5, 97),
        lambda rng: [program(rng)],
    ),
    "cache": Family(
        4,
        "the keys, the one used longest ago first, in a cache of $k places after those in values were used "
        "in order; where it is full, a new key takes the place of the one used longest ago",
        """def solve(values):
    cache = []
    for key in values:
        if key in cache:
            cache.remove(key)
        elif len(cache) == $k:
            cache.pop(0)
        cache.append(key)
    return cache
""",
        small(2, 5),
        lambda rng: [[rng.randint(0, 7) for _ in range(rng.randint(0, 20))]],
    ),
    "steps": Family(
        4,
        "the fewest steps from the top left to the bottom right of the grid values, up, down, left or right, "
        "never onto a #, where each step onto a digit costs that digit more, and onto anything else $k; None "
        "where there is no way",
        """import heapq


def solve(values):
    rows, columns = len(values), len(values[0])
    best, queue = {}, [(0, 0, 0)]
    while queue:
        cost, row, column = heapq.heappop(queue)
        if (row, column) in best:
            continue
        best[row, column] = cost
        for r, c in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if 0 <= r < rows and 0 <= c < columns and values[r][c] != "#":
                cell = values[r][c]
                heapq.heappush(queue, (cost + (int(cell) if cell.isdigit() else $k), r, c))
    return best.get((rows - 1, columns - 1))
""",
        small(1, 6),
        lambda rng: [grid(rng)],
    ),
}


@dataclass(frozen=True)
class Problem:
    """A problem: its text, and the calls of `solve` that judge it, of which the first are shown."""

    text: str
    source: str
    calls: list[list[Any]]
    answers: list[Any]


def draw(rng: random.Random, difficulty: int) -> JsonObject:
    """The data of a random problem."""
    name = rng.choice(sorted(n for n, f in FAMILIES.items() if f.difficulty == difficulty))
    parameters = FAMILIES[name].parameters(rng)
    seed = rng.randrange(10**6)
    return {"difficulty": difficulty, "family": name, "parameters": parameters, "seed": seed}


def problem(data: JsonObject) -> Problem:
    """The problem that data describe, the same each time."""
    family = FAMILIES[data["family"]]
    rng = random.Random(data["seed"])
    calls = [family.arguments(rng) for _ in range(NUM_EXAMPLES + NUM_TESTS)]
    source = Template(family.source).substitute(data["parameters"])
    scope: JsonObject = {}
    exec(compile(source, data["family"], "exec"), scope)
    text = Template(family.text).substitute(data["parameters"])
    answers = [scope["solve"](*arguments) for arguments in calls]
    return Problem(text, source, calls, answers)
