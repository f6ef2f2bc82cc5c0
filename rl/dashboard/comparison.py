"""Runs compared: those that differ by their seed alone as one group, groups by their held-out results.

The result of a run is its last evaluation's mean pass rate, with the uncertainty of the bootstrap over tasks;
of runs without evaluations the mean reward of the last ten steps. The probability that one group's true
result is higher is of draws: of one run a normal one around its result, of several seeds Student's t around
their mean (Gosset 1908), never narrower than the runs' own uncertainty allows. One seed says nothing of
another.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from rl.dashboard.intervals import Interval
from rl.dashboard.run_data import RunData
from rl.dashboard.series import Series

DRAWS = 20_000
_Z = 1.96
_LAST_STEPS = 10
# Settings in which runs of one group may differ.
_OWN = ("seed", "name", "runs_dir", "wandb.", "ray.", "tracker", "checkpoint_", "notify")
HELD_OUT = "eval/mean_pass_rate"
# Charts of the page: the metric and its title.
KEYS = {
    HELD_OUT: "held-out pass rate, mean",
    "rollout/all/reward": "mean reward",
    "loss/entropy": "entropy",
    "rollout/all/completion_tokens": "tokens written per trajectory",
    "optim/grad_norm": "gradient norm",
    "time/tokens_per_second": "tokens per second",
}


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone. name: that of its first run, with the number of seeds."""

    name: str
    runs: tuple[RunData, ...]


@dataclass(frozen=True)
class Result:
    """A group's result: mean over its seeds, standard error, and how many seeds. what: of which figure."""

    mean: float
    error: float
    seeds: int
    what: str


@dataclass(frozen=True)
class Verdict:
    """Two groups: the probability that the first is better, and the difference with its 95 % interval."""

    first: str
    second: str
    probability: float
    difference: float
    low: float
    high: float


def groups(runs: Sequence[RunData]) -> list[Group]:
    """Group runs by all settings but those of one run, such as its seed, in the order in which they come."""
    found: dict[tuple[tuple[str, str], ...], list[RunData]] = {}
    for run in runs:
        shared = tuple(sorted((k, v) for k, v in flat(run.config) if not k.startswith(_OWN)))
        found.setdefault(shared, []).append(run)
    return [
        Group(own[0].name + (f" ({len(own)} seeds)" if len(own) > 1 else ""), tuple(own))
        for own in found.values()
    ]


def flat(table: Mapping[str, object], above: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their dotted names."""
    for key, value in table.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict):
            yield from flat(value, name)
        else:
            yield name, str(value)


def result(group: Group) -> Result | None:
    """The result of a group; None where a run of it has none, or the runs' figures are not the same."""
    found = [one for run in group.runs if (one := _result(run)) is not None]
    if len(found) < len(group.runs) or len({one.what for one in found}) != 1:
        return None
    means = np.array([one.mean for one in found])
    own = math.sqrt(sum(one.error**2 for one in found)) / len(found)
    spread = float(means.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    return Result(float(means.mean()), max(own, spread), len(found), found[0].what)


def _result(run: RunData) -> Result | None:
    judged = [row.mean for row in run.evaluations if row.mean is not None]
    if judged:
        last = judged[-1]
        low, high = last.low, last.high
        error = 0.0 if low is None or high is None else (high - low) / (2 * _Z)
        return Result(last.pass_rate, error, 1, "held-out pass rate of the last evaluation")
    one = run.series.get("rollout/all/reward")
    if one is None:
        return None
    values = np.array(one.values[-_LAST_STEPS:])
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Result(float(values.mean()), error, 1, f"reward of the last {_LAST_STEPS} steps")


def verdicts(found: Sequence[Group], seed: int = 0) -> list[Verdict]:
    """Every two groups whose results are of the same figure; the same draws each time."""
    results = [(group, one) for group in found if (one := result(group)) is not None]
    draws = np.random.default_rng(seed)
    drawn = {group.name: _draw(draws, one) for group, one in results}
    said: list[Verdict] = []
    for (first, one), (second, other) in combinations(results, 2):
        if one.what != other.what:
            continue
        gaps = drawn[first.name] - drawn[second.name]
        low, high = np.percentile(gaps, [2.5, 97.5])
        better = float((gaps > 0).mean() + (gaps == 0).mean() / 2)
        difference = one.mean - other.mean
        said.append(Verdict(first.name, second.name, better, difference, float(low), float(high)))
    return said


def _draw(draws: np.random.Generator, one: Result) -> npt.NDArray[np.float64]:
    noise = (
        draws.standard_normal(DRAWS) if one.seeds == 1 else draws.standard_t(one.seeds - 1, DRAWS)
    )
    return one.mean + one.error * noise


def band(group: Group, key: str) -> tuple[Series, list[Interval]]:
    """Mean over the seeds of a metric by step, and one standard deviation around it; of one run its line and,
    of held-out results, their intervals."""
    series = [one for run in group.runs if (one := _series(run, key)).values]
    if len(series) < 2:
        return (series[0] if series else Series()), _intervals(group.runs[0], key)
    by_step = [dict(zip(one.steps, one.values, strict=True)) for one in series]
    steps = sorted(set.intersection(*(set(one) for one in by_step)))
    values = np.array([[one[step] for step in steps] for one in by_step])
    means, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    around = [
        (float(s), float(m - d), float(m + d)) for s, m, d in zip(steps, means, spread, strict=True)
    ]
    return Series(steps, means.tolist()), around


def _series(run: RunData, key: str) -> Series:
    if key != HELD_OUT or not run.evaluations:
        return run.series.get(key, Series())
    rates = sorted(
        (row.version, row.mean.pass_rate) for row in run.evaluations if row.mean is not None
    )
    return Series([version for version, _ in rates], [rate for _, rate in rates])


def _intervals(run: RunData, key: str) -> list[Interval]:
    if key != HELD_OUT:
        return []
    return sorted(
        (float(row.version), row.mean.low, row.mean.high)
        for row in run.evaluations
        if row.mean is not None and row.mean.low is not None and row.mean.high is not None
    )
