"""Numbers of a held-out evaluation: pass rates, pass@k and their uncertainty. Pure functions of its reports.

A task counts once, however many of its episodes were judged; an episode that ended in a fault is no failure.
The intervals are of the tasks that were drawn: how far the rate would move with other tasks of the same kind.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np

from rl.samples.group import GroupReport
from rl.samples.metrics import passed

# Draws of a bootstrap, and the share of them that an interval covers.
DRAWS, COVERED = 2000, 0.95
# Values drawn at once: what bounds the memory of an evaluation of many tasks.
_AT_ONCE = 2**21
MEAN = ("pass_rate", "low", "high")


@dataclass(frozen=True)
class TaskResult:
    """One task's judged episodes, and how many of them passed, e.g. 3 of 4."""

    judged: int
    passed: int

    @property
    def rate(self) -> float:
        """Share of its judged episodes that passed."""
        return self.passed / self.judged


@dataclass(frozen=True)
class Rates:
    """Result of one environment: avg@k (`pass_rate`) with its 95 % interval, and pass@j by j.

    tasks: with a judged episode. episodes: that were judged. reward: mean total of these.
    """

    pass_rate: float
    low: float
    high: float
    pass_at: dict[int, float]
    tasks: int
    episodes: int
    reward: float


def pass_at_k(judged: int, passed: int, k: int) -> float:
    """Probability that one of k episodes passes, without bias from `passed` of `judged` ones.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1), as a product, exact for
    large n too. Raises ValueError unless 1 <= k <= judged.
    """
    if not 1 <= k <= judged or not 0 <= passed <= judged:
        raise ValueError(f"pass@{k} of {passed} passed in {judged} judged episodes has no value")
    if judged - passed < k:
        return 1.0
    failing = 1.0
    for failed in range(judged - passed + 1, judged + 1):
        failing *= 1.0 - k / failed
    return 1.0 - failing


def sizes(samples: int) -> list[int]:
    """The j of pass@j for so many episodes of a task: powers of two, and `samples`."""
    return sorted({2**n for n in range(samples.bit_length()) if 2**n <= samples} | {samples})


def bootstrap(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of the groups' means, by drawing each group's values anew.

    groups: the tasks' rates, per environment; none is empty. The percentiles of DRAWS draws (Efron 1979), the
    same for the same seed. A group whose values are all equal adds no width.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros(DRAWS)
    for values in groups:
        array = np.asarray(values, dtype=np.float64)
        some = max(1, _AT_ONCE // len(array))
        for first in range(0, DRAWS, some):
            drawn = rng.integers(len(array), size=(min(some, DRAWS - first), len(array)))
            means[first : first + some] += array[drawn].mean(axis=1)
    tail = 100 * (1 - COVERED) / 2
    low, high = np.percentile(means / len(groups), [tail, 100 - tail])
    return round(float(low), 4), round(float(high), 4)


def task_results(reports: Iterable[GroupReport]) -> dict[str, list[TaskResult]]:
    """The tasks of each environment that have a judged episode."""
    found: dict[str, list[TaskResult]] = defaultdict(list)
    for report in reports:
        judged = [member for member in report.members if member.judged]
        if judged:
            full = sum(passed(member.rewards, member.reward) for member in judged)
            found[report.spec.env].append(TaskResult(len(judged), full))
    return dict(sorted(found.items()))


def heldout_rates(reports: Sequence[GroupReport], samples: int) -> dict[str, Rates]:
    """The result of each environment with a judged episode. samples: episodes of each task."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for report in reports:
        rewards[report.spec.env] += [m.reward for m in report.members if m.judged]
    rates: dict[str, Rates] = {}
    for env, tasks in task_results(reports).items():
        low, high = bootstrap([[task.rate for task in tasks]])
        at: dict[int, float] = {}
        for k in sizes(samples):
            # A task with fewer judged episodes says nothing of pass@k without bias.
            if whole := [t for t in tasks if t.judged >= k]:
                at[k] = round(fmean(pass_at_k(t.judged, t.passed, k) for t in whole), 4)
        rates[env] = Rates(
            pass_rate=round(fmean(task.rate for task in tasks), 4),
            low=low,
            high=high,
            pass_at=at,
            tasks=len(tasks),
            episodes=sum(task.judged for task in tasks),
            reward=round(fmean(rewards[env]), 4),
        )
    return rates


def mean_rate(reports: Iterable[GroupReport]) -> tuple[float, float, float] | None:
    """The mean of the environments' pass rates and its interval; None where no episode was judged."""
    tasks = task_results(reports)
    if not tasks:
        return None
    groups = [[task.rate for task in one] for one in tasks.values()]
    return (round(fmean(map(fmean, groups)), 4), *bootstrap(groups))


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    version, last_version: the oldest and the newest that wrote a token. lag: the learner's version at the end
    minus the oldest. samples: episodes of each task. mean: of the environments, with its interval.
    """

    version: int
    last_version: int
    lag: int
    samples: int
    rates: dict[str, Rates]
    mean: tuple[float, float, float] | None

    @property
    def pass_rates(self) -> dict[str, float]:
        """Pass rate of each environment."""
        return {env: one.pass_rate for env, one in self.rates.items()}

    def row(self) -> dict[str, object]:
        """A line of evaluations.jsonl."""
        return {
            "version": self.version,
            "last_version": self.last_version,
            "lag": self.lag,
            "samples_per_task": self.samples,
            "mean": None if self.mean is None else dict(zip(MEAN, self.mean, strict=True)),
            "env": {env: asdict(one) for env, one in self.rates.items()},
        }

    def metrics(self) -> dict[str, float]:
        """`eval/<env>/<pass_rate|low|high|reward|pass_at_k|pass_at_2 ...>`, `eval/mean_<pass_rate|low|high>`,
        `eval/version` and `eval/lag`."""
        values = {"eval/version": float(self.version), "eval/lag": float(self.lag)}
        for env, one in self.rates.items():
            named = dict(zip(MEAN, (one.pass_rate, one.low, one.high), strict=True))
            named |= {f"pass_at_{k}": rate for k, rate in one.pass_at.items() if k > 1}
            named["reward"] = one.reward
            if self.samples in one.pass_at:
                named["pass_at_k"] = one.pass_at[self.samples]
            values |= {f"eval/{env}/{name}": value for name, value in named.items()}
        if self.mean is not None:
            values |= {f"eval/mean_{n}": v for n, v in zip(MEAN, self.mean, strict=True)}
        return values


def evaluated(
    reports: Sequence[GroupReport], samples: int, *, learner_version: int, served: int
) -> Evaluation:
    """The result of the groups of an evaluation.

    learner_version: at the end. served: the version where no trajectory says one, since all failed.
    """
    versions = {v for report in reports for member in report.members for v in member.versions}
    first = min(versions, default=served)
    return Evaluation(
        version=first,
        last_version=max(versions, default=served),
        lag=learner_version - first,
        samples=samples,
        rates=heldout_rates(reports, samples),
        mean=mean_rate(reports),
    )
