"""Change points: steps at which a metric began to behave otherwise, each with an interval and a probability.

In: a series. Out: for each change its median step, the interval that holds it with 90 %, and the probability
that there is one. The model: between two changes the metric is a level or a line, with noise around it that
may be correlated from step to step. The posterior over all ways to place up to `MOST` changes is summed up
exactly, on a grid of the noise's size s and correlation c; nothing is drawn at random.

    p(y | places, s, c) = product over stretches of exp(-RSS / 2 s^2) (1 + m / s^2)^(-columns / 2)
    p(places | k) = 1 / (ways to place k changes), every number k of changes as probable as every other

This is the unit information prior and the prior over the number of knots of arXiv 2405.13353 (gamma = 1). The
paper draws continuous splines by reversible jumps; stretches that need not meet can be summed up, forward and
backward (Fearnhead 2006, "Exact and efficient Bayesian inference for multiple changepoint problems"). Its
double knot, a jump, is one change here. The correlation is taken out beforehand, y_t - c y_(t-1): noise that
wanders would otherwise look like changes.

A view from behind and no alarm: a change is found once a stretch after it is there. The result says when a
metric changed, never why. Shapes: m values, P places where a stretch may begin or end, k up to K changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Changes at most, and the probability from which on one is said.
MOST = 5
SURE = 0.9
# A series of fewer values says nothing; a longer one than LONGEST is averaged over neighbours.
FEWEST = 20
LONGEST = 500
# A stretch has so many values, or this share of the series where that is less: a spike is no stretch.
SHORTEST = 20
SHORTEST_SHARE = 0.1
# Places looked at, at most.
_PLACES = 200
# Correlation of a step's noise with that of the step before; near 1 the series is a random walk.
_CORRELATIONS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.99)
_SIZES = 60
# A value so many standard deviations from the median of its neighbours counts as that far away.
_OUTLIER = 4.0
_NEIGHBOURS = 7
# In a series that is otherwise constant, spikes are this share of it at most.
_FEW = 0.1


@dataclass(frozen=True)
class ChangePoint:
    """One change, such as step 118, low 114, high 121, probability 0.97, before 0.8, after 0.5, "fell".

    low, high: steps between which it lies with 90 %. before, after: means of the stretches beside it, at most
    `SHORTEST` values of each. how: "fell" and "rose" are jumps; "turned down" and "turned up" bends.
    """

    step: int
    low: int
    high: int
    probability: float
    before: float
    after: float
    how: str


@dataclass(frozen=True)
class _Posterior:
    """numbers_K: probability of k changes. places_KP: of the i-th of the most probable number to be at a
    place. any_P: of a change at a place, whatever their number."""

    numbers_K: Floats
    places_KP: Floats
    any_P: Floats


@dataclass(frozen=True)
class _Noise:
    """One point of the grid: the stretches' residuals and lengths, 1 / s^2, and the price of a stretch.

    scale: taken off per value, so that the best stretches weigh about 1: no number gets too large or small.
    """

    costs_PP: Floats
    length_PP: Floats
    precision: float
    scale: float
    price: float

    def weights(self) -> Floats:
        """(P, P): of the stretch from one place to another; 0 where it is too short."""
        fits_PP = self.precision * self.costs_PP - self.scale * self.length_PP
        return np.exp(-0.5 * fits_PP - self.price)


@lru_cache(maxsize=512)
def change_points(steps: tuple[int, ...], values: tuple[float, ...]) -> tuple[ChangePoint, ...]:
    """Changes of a series that are there with a probability of `SURE` or more, in order.

    steps, values: one of each per point, finite. E.g. 60 values near 1, then 60 near 0 -> one, "fell".
    """
    together = -(-len(values) // LONGEST)
    count = len(values) // together if together else 0
    if count < FEWEST:
        return ()
    begin = len(values) - count * together  # what does not fill a block is left out at the start
    y = np.asarray(values[begin:], dtype=np.float64).reshape(count, together).mean(1)
    spread = float(y.std())
    if not np.isfinite(spread) or spread <= 1e-12 * max(1.0, float(np.abs(y).max())):
        return ()
    shortest = max(5, min(SHORTEST, int(SHORTEST_SHARE * count)))
    places = np.array([0, *range(shortest, count - shortest + 1, -(-count // _PLACES)), count])
    cleaned = _without_spikes((y - y.mean()) / spread)
    if float(np.ptp(cleaned)) <= 1e-12:
        return ()
    found = _posterior(cleaned, places, shortest)
    named = [steps[begin + min(place, count - 1) * together] for place in places.tolist()]
    return tuple(_described(found, places, y, named))


def _without_spikes(y: Floats) -> Floats:
    """The series with each spike cut to `_OUTLIER` deviations from its neighbours' median."""
    half = _NEIGHBOURS // 2
    padded = np.pad(y, half, mode="edge")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, _NEIGHBOURS), axis=1)
    bound = _OUTLIER * 1.4826 * float(np.median(np.abs(y - middle))) * 1.2
    return _without_few(y, half) if bound == 0 else middle + np.clip(y - middle, -bound, bound)


def _without_few(y: Floats, most: int) -> Floats:
    """A series without noise and without its spikes: of what is all but constant the few other values, where
    they stand by themselves, up to `most` in a row."""
    common = float(np.median(y))
    other = y != common
    if np.count_nonzero(other) > _FEW * len(y):
        return y
    runs = np.split(np.arange(len(y)), np.flatnonzero(np.diff(other)) + 1)
    kept = y.copy()
    for run in runs:
        if len(run) <= most:
            kept[run] = common
    return kept


def _residuals(
    z: Floats, places: npt.NDArray[np.int64], shortest: int
) -> tuple[list[Floats], Floats]:
    """(P, P) of the stretch from one place to another: squared residuals of its best level and of its best
    line, infinite where it is too short; and its length. z: without its first value, which has none before
    it."""
    at = np.maximum(places - 1, 0)
    x = np.linspace(-0.5, 0.5, len(z))

    def summed(values: Floats) -> Floats:
        sums = np.concatenate([[0.0], np.cumsum(values)])[at]
        return sums[None, :] - sums[:, None]

    length = (at[None, :] - at[:, None]).astype(np.float64)
    fits = (places[None, :] - places[:, None]) >= shortest
    n = np.where(fits, length, 1.0)
    sz, sx = summed(z), summed(x)
    level = summed(z * z) - sz * sz / n
    cross, width = summed(x * z) - sx * sz / n, summed(x * x) - sx * sx / n
    line = level - cross * cross / np.where(fits, width, 1.0)
    return [np.where(fits, np.maximum(one, 0.0), np.inf) for one in (level, line)], length


def _forward(weights_PP: Floats) -> Floats:
    """(MOST + 1, P): summed weights of all ways from the first place to another in k + 1 stretches."""
    rows = [weights_PP[0]]
    for _ in range(MOST):
        rows.append(rows[-1] @ weights_PP)
    return np.stack(rows)


def _least(costs_PP: Floats) -> Floats:
    """(MOST + 1,): smallest sum of residuals with k changes."""
    row, found = costs_PP[0], [costs_PP[0, -1]]
    for _ in range(MOST):
        row = (row[:, None] + costs_PP).min(0)
        found.append(row[-1])
    return np.array(found)


def _posterior(y: Floats, places: npt.NDArray[np.int64], shortest: int) -> _Posterior:
    """Sum over the noise's size and correlation. y: of standard deviation 1."""
    m = len(y) - 1
    allowed = ((places[None, :] - places[:, None]) >= shortest).astype(np.float64)
    ways_K = _forward(allowed)[:, -1]
    grid: list[tuple[_Noise, Floats]] = []  # with log p(k, y) of each k
    for correlation in _CORRELATIONS:
        fits, length = _residuals(y[1:] - correlation * y[:-1], places, shortest)
        for columns, costs in enumerate(fits, start=1):
            least = _least(costs)
            whole = max(float(least[0]) / m, 1e-12)
            best = max(float(least.min()) / m, 1e-4 * whole)
            log_sizes, step = _grid(best / 1.5, whole * 1.4, m)
            for log_size in log_sizes:
                precision = float(np.exp(-log_size))
                price = 0.5 * columns * float(np.log(1.0 + m * precision))
                # Correlated noise says less of a level: one that it can do without a change for is cheap.
                first = 0.5 * columns * np.log(1.0 + m * (1.0 - correlation) ** 2 * precision)
                noise = _Noise(costs, length, precision, precision * best, price)
                with np.errstate(divide="ignore", invalid="ignore"):
                    log_K = np.log(_forward(noise.weights())[:, -1] / ways_K)
                log_K += price - first + np.log(step) - 0.5 * m * (noise.scale + log_size)
                grid.append((noise, np.where(ways_K > 0, log_K, -np.inf)))
    return _summed(grid, len(places))


def _grid(low: float, high: float, m: int) -> tuple[list[float], float]:
    """Logarithms of the noise's size to sum over, and their distance: 1.5 deviations of their posterior, at
    which the sum is the integral to a thousandth."""
    span = float(np.log(high / low))
    count = min(_SIZES, int(span / (1.5 * np.sqrt(2.0 / m))) + 2)
    return np.linspace(np.log(low), np.log(high), count).tolist(), span / (count - 1)


def _summed(grid: Sequence[tuple[_Noise, Floats]], count: int) -> _Posterior:
    """Put the grid together by its probabilities."""
    logs = np.stack([log_k for _, log_k in grid])
    shares = np.exp(logs - logs.max())
    shares /= shares.sum()
    numbers_K = shares.sum(0)
    most = int(numbers_K.argmax())
    places_KP, any_P = np.zeros((most, count)), np.zeros(count)
    for (noise, _), share_K in zip(grid, shares, strict=True):
        if share_K.sum() < 1e-4:
            continue
        weights = noise.weights()
        forward = _forward(weights)
        backward = _forward(np.ascontiguousarray(weights[::-1, ::-1].T))[:, ::-1]
        for k in range(1, MOST + 1):
            if share_K[k] < 1e-6:
                continue
            at = forward[:k] * backward[k - 1 :: -1][:k] / forward[k, -1] * share_K[k]
            any_P += at.sum(0)
            if k == most:
                places_KP += at
    return _Posterior(numbers_K, places_KP, any_P)


def _described(
    found: _Posterior, places: npt.NDArray[np.int64], y: Floats, named: Sequence[int]
) -> list[ChangePoint]:
    """The changes that are sure enough, with the means and the lines of the stretches beside them."""
    rows = found.places_KP / np.maximum(found.places_KP.sum(1, keepdims=True), 1e-300)
    # The median: modes of two neighbours can be one place, their medians are a stretch apart.
    tops = [int(np.searchsorted(np.cumsum(row), 0.5)) for row in rows]
    bounds = [0, *(int(places[top]) for top in tops), len(y)]
    points: list[ChangePoint] = []
    for index, (row, top) in enumerate(zip(rows, tops, strict=True)):
        summed = np.cumsum(row)
        low, high, first, last = (
            int(np.searchsorted(summed, q)) for q in (0.05, 0.95, 0.005, 0.995)
        )
        probability = min(1.0, float(found.any_P[first : last + 1].sum()))
        if probability < SURE:
            continue
        left, right = (y[bounds[index + i] : bounds[index + i + 1]] for i in (0, 1))
        points.append(
            ChangePoint(
                named[top],
                named[low],
                named[min(high, len(named) - 1)],
                probability,
                float(left[-SHORTEST:].mean()),
                float(right[:SHORTEST].mean()),
                _how(left, right),
            )
        )
    return points


def _how(left: Floats, right: Floats) -> str:
    """A jump where the two lines are apart by a standard deviation of what they leave; else a bend."""
    (slope_left, end), (slope_right, start) = (
        np.polyfit(np.arange(len(left)) - len(left) + 0.5, left, 1),
        np.polyfit(np.arange(len(right)) + 0.5, right, 1),
    )
    kept_left = left - np.polyval((slope_left, end), np.arange(len(left)) - len(left) + 0.5)
    kept_right = right - np.polyval((slope_right, start), np.arange(len(right)) + 0.5)
    noise = float(np.sqrt(np.mean(np.concatenate([kept_left, kept_right]) ** 2)))
    if abs(start - end) > noise:
        return "fell" if start < end else "rose"
    return "turned down" if slope_right < slope_left else "turned up"
