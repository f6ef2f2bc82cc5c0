"""A rolling change of weights: how many requests are moved to the newer weights at a time. Pure.

While requests are moved, an engine's steps alternate between two models. A step on the older weights writes a
token for each request that still waits for its move; a step on the newer ones writes a token for each request
that was moved, and computes the prefixes of those that move now. So no request stands still for longer than
one step of each kind, and `Pace` bounds the prefixes: in tokens, from the steps that it has seen.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median

# A step on each model, prefixes included, is to take as long as so many undisturbed steps.
TARGET_STEPS = 4.0
# Before anything was measured.
FIRST_BUDGET = 256
# A step with fewer tokens of prefixes says little about what one takes.
_LEAST_TOKENS = 16
_KEPT = 32


class Pace:
    """Tokens of prefixes to compute in one step, so that requests which write are not held up for long."""

    def __init__(self, tokens: int | None = None) -> None:
        """tokens: a fixed answer; None: measured."""
        self.fixed = tokens
        # Undisturbed steps: seconds, and how many requests wrote.
        self.steps: deque[tuple[float, int]] = deque(maxlen=_KEPT)
        # Seconds per token of a prefix.
        self.rates: deque[float] = deque(maxlen=_KEPT)

    def note(self, seconds: float, writing: int, prefill: int) -> None:
        """A step took so long, in which `writing` requests had one token each and `prefill` tokens were
        prefixes."""
        if prefill == 0:
            self.steps.append((seconds, writing))
        elif prefill >= _LEAST_TOKENS:
            self.rates.append(max(0.0, seconds - self._writing_seconds(writing)) / prefill)

    def budget(self) -> int:
        """Tokens of prefixes that one step may compute."""
        if self.fixed is not None:
            return self.fixed
        rate = median(self.rates) if self.rates else 0.0
        if not self.steps or not rate:
            return FIRST_BUDGET
        # Both steps of a pair write, and share what writing alone takes.
        step = median(seconds for seconds, _ in self.steps)
        return max(1, int((TARGET_STEPS - 2) * step / rate))

    def _writing_seconds(self, writing: int) -> float:
        if not self.steps:
            return 0.0
        usual = median(number for _, number in self.steps)
        return median(seconds for seconds, _ in self.steps) * min(1.0, writing / max(1, usual))


def next_to_move(prefixes: Sequence[int], waiting: int, budget: int) -> list[int]:
    """Indices of the requests to move next, the shortest prefix first: it costs least, and whoever has
    written most may be through before its turn comes.

    prefixes: tokens to compute for each request; waiting: tokens of prompts that have waited longer, which
    have up to half of the budget. At least one request is moved, however long its prefix is.
    """
    left = budget - min(waiting, budget // 2)
    chosen: list[int] = []
    for index in sorted(range(len(prefixes)), key=prefixes.__getitem__):
        if chosen and prefixes[index] > left:
            break
        chosen.append(index)
        left -= prefixes[index]
    return chosen
