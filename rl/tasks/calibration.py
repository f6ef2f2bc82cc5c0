"""Calibration of forecasts: what was believed of a group's task, against how the group ended.

Consumes a `ForecastOutcome` per group. Produces metrics over the last groups: log-loss per episode,
calibration error, and the share of groups without variance, of tasks that were chosen and of those drawn by
chance.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean

from rl.tasks.forecast import Forecast

# Metrics are over so many groups, of each way to draw them.
RECENT = 256
BINS = 10
# A forecast of 0 or 1 that is wrong costs what one this far away does, so that a mean stays finite.
CLOSEST = 1e-4


@dataclass(frozen=True)
class ForecastOutcome:
    """A group's forecast and its end, e.g. `ForecastOutcome("value", 0.4, 0.3, True, 3, 8, False)`.

    chosen: "value", "chance", or "" where the group is a further one of a task. base_rate: the forecast of a
    task of which nothing is known. known: the task had outcomes of its own.
    """

    chosen: str
    forecast: float
    base_rate: float
    known: bool
    passes: int
    episodes: int
    zero_variance: bool


class Calibration:
    """The last groups of one environment, by how their tasks were drawn."""

    def __init__(self) -> None:
        self.groups: dict[str, deque[ForecastOutcome]] = {
            chosen: deque(maxlen=RECENT) for chosen in ("value", "chance")
        }
        self.known: deque[float] = deque(maxlen=RECENT)

    def candidates(self, forecasts: Iterable[Forecast]) -> None:
        """Count how many candidates of a choice have outcomes of their own."""
        self.known.append(fmean(f.known for f in forecasts))

    def add(self, outcome: ForecastOutcome) -> None:
        """Add a group; a further one of the same task says nothing of the choice, and is left out."""
        if outcome.chosen in self.groups:
            self.groups[outcome.chosen].append(outcome)

    def metrics(self) -> dict[str, float]:
        """`log_loss`, `log_loss_base`, `calibration_error`, `known`, and of each way to draw tasks
        `<value|chance>/<zero_variance|forecast|passed>`; what nothing is known of is left out."""
        every = [outcome for groups in self.groups.values() for outcome in groups]
        values: dict[str, float] = {}
        if every:
            values["log_loss"] = log_loss([(o.forecast, o.passes, o.episodes) for o in every])
            values["log_loss_base"] = log_loss([(o.base_rate, o.passes, o.episodes) for o in every])
            values["calibration_error"] = calibration_error(
                [(o.forecast, o.passes, o.episodes) for o in every]
            )
        if self.known:
            values["known"] = fmean(self.known)
        for chosen, groups in self.groups.items():
            if groups:
                values[f"{chosen}/zero_variance"] = fmean(o.zero_variance for o in groups)
                values[f"{chosen}/forecast"] = fmean(o.forecast for o in groups)
                values[f"{chosen}/passed"] = fmean(o.passes / o.episodes for o in groups)
        return values


def log_loss(forecasts: Sequence[tuple[float, int, int]]) -> float:
    """Mean of -log of the probability given to each episode's end, in nats; of (rate, passes, episodes)."""
    total = 0.0
    for rate, passes, episodes in forecasts:
        p = min(1 - CLOSEST, max(CLOSEST, rate))
        total -= passes * log(p) + (episodes - passes) * log(1 - p)
    return total / sum(episodes for _, _, episodes in forecasts)


def calibration_error(forecasts: Sequence[tuple[float, int, int]]) -> float:
    """Expected calibration error: |forecast - what came| of ten bins of the forecast, weighed by episodes."""
    bins = [[0.0, 0, 0] for _ in range(BINS)]
    for rate, passes, episodes in forecasts:
        one = bins[min(BINS - 1, int(rate * BINS))]
        one[0] += rate * episodes
        one[1] += passes
        one[2] += episodes
    total = sum(episodes for _, _, episodes in bins)
    return sum(abs(believed - came) for believed, came, _ in bins) / total
