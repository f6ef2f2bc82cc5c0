"""Forecasts of pass rates before a group is played: a Beta posterior for each task, and its learning value.

    forecast(tasks) -> a Forecast each        learn(task, outcome)        state(), restore(state)

An outcome weighs `forget` to the power of the policy versions that have come since it was played: what the
policy of long ago did says little of today's. So the posterior of a task that rests returns to that of a
task nobody has seen, whose mean and spread are those of the groups drawn by chance lately (empirical Bayes).

The value of a group is E[p (1 - p) (1 - p^G - (1 - p)^G)] under the posterior of its task's pass rate p,
with G episodes a group: the size of the gradient times the chance that rewards are not all equal
(LongCat-Flash-Thinking, arXiv 2509.18883, on tasks of intermediate pass rate; a Beta posterior per prompt is
MoPPS's, arXiv 2507.04632).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, lgamma
from typing import ClassVar, Protocol

from envs.env import Task
from rl.record.position import ChoiceState

# An outcome that weighs less than this share of an episode is dropped.
NEGLIGIBLE = 0.02
# The posterior of an unseen task before any group: that many groups of uniform rates.
FIRST_GROUPS = 2.0
# Bounds of an unseen task's strength, in episodes.
LEAST_STRENGTH, MOST_STRENGTH = 0.5, 50.0


@dataclass(frozen=True)
class Forecast:
    """The expected pass rate of a task, the value of a group of it, and if outcomes of its own are known."""

    rate: float
    value: float
    known: bool


@dataclass(frozen=True)
class TaskOutcome:
    """How a group of a task ended, e.g. `TaskOutcome(passes=3, episodes=8, version=12, by_chance=True)`.

    version: the oldest policy version that played it. by_chance: True if the task was drawn as it came.
    """

    passes: int
    episodes: int
    version: int
    by_chance: bool


class Forecaster(Protocol):
    """Forecasts pass rates of one environment's tasks. A task is known by `key_of`."""

    def forecast(self, tasks: Sequence[Task]) -> list[Forecast]:
        """Forecast each of the tasks at the newest version."""
        ...

    @property
    def base_rate(self) -> float:
        """Pass rate of a task drawn by chance."""
        ...

    def learn(self, task: Task, outcome: TaskOutcome) -> None:
        """Take in how a group ended."""
        ...

    def state(self, draws: int) -> ChoiceState:
        """Everything that later forecasts depend on."""
        ...

    def restore(self, state: ChoiceState) -> None:
        """Go on from a state of the same kind of forecast."""
        ...


@dataclass(frozen=True)
class Counts:
    """Passes and fails of a task, in episodes, as they weigh at a policy version."""

    passes: float = 0.0
    fails: float = 0.0
    version: int = 0

    def at(self, version: int, forget: float) -> "Counts":
        """The same counts at a later version."""
        faded = forget ** max(0, version - self.version)
        return Counts(self.passes * faded, self.fails * faded, max(version, self.version))

    def plus(self, outcome: TaskOutcome, forget: float) -> "Counts":
        """The counts with one more group, both at the later one of the two versions."""
        fails = outcome.episodes - outcome.passes
        new = Counts(outcome.passes, fails, outcome.version).at(self.version, forget)
        old = self.at(outcome.version, forget)
        return Counts(old.passes + new.passes, old.fails + new.fails, old.version)


class Spread:
    """Mean and spread of pass rates over tasks drawn by chance, from faded sums over their groups.

    The mean of s/n over groups estimates E[p], that of s(s-1)/n(n-1) estimates E[p²], for s passes of n.
    """

    def __init__(self, forget: float) -> None:
        self.forget = forget
        self.sums = list(self._first)
        self.version = 0

    def learn(self, outcome: TaskOutcome) -> None:
        """Add a group of two episodes or more."""
        s, n = outcome.passes, outcome.episodes
        if n < 2:
            return
        faded = self.forget ** max(0, outcome.version - self.version)
        late = self.forget ** max(0, self.version - outcome.version)
        self.version = max(self.version, outcome.version)
        new = (1.0, s / n, s * (s - 1) / (n * (n - 1)))
        self.sums = [
            first + (old - first) * faded + late * value
            for old, value, first in zip(self.sums, new, self._first, strict=True)
        ]

    @property
    def mean(self) -> float:
        """E[p]."""
        return self.sums[1] / self.sums[0]

    @property
    def strength(self) -> float:
        """The sum of the two parameters of the Beta distribution with this mean and spread, in episodes."""
        mean = self.mean
        variance = self.sums[2] / self.sums[0] - mean * mean
        if variance <= 0:
            return MOST_STRENGTH
        return min(MOST_STRENGTH, max(LEAST_STRENGTH, mean * (1 - mean) / variance - 1))

    @property
    def _first(self) -> tuple[float, float, float]:
        return (FIRST_GROUPS, FIRST_GROUPS / 2, FIRST_GROUPS / 3)


class Outcomes:
    """How groups of one environment ended: faded counts per task, and the spread of those drawn by chance.

    The part of a `Forecaster` that is the same for all kinds.
    """

    kind: ClassVar[str]

    def __init__(self, forget: float, group_size: int) -> None:
        self.forget = forget
        self.group_size = group_size
        self.spread = Spread(forget)
        self.tasks: dict[str, Counts] = {}
        self.version = 0

    @property
    def base_rate(self) -> float:
        return self.spread.mean

    def learn(self, task: Task, outcome: TaskOutcome) -> None:
        if outcome.by_chance:
            self.spread.learn(outcome)
        key = key_of(task)
        self.tasks[key] = self.tasks.get(key, Counts()).plus(outcome, self.forget)
        if outcome.version > self.version:
            self.version = outcome.version
            self.tasks = still_weighing(self.tasks, self.version, self.forget)

    def state(self, draws: int) -> ChoiceState:
        return ChoiceState(
            self.kind,
            draws,
            self.version,
            [*self.spread.sums, self.spread.version],
            {key: [c.passes, c.fails, c.version] for key, c in self.tasks.items()},
        )

    def restore(self, state: ChoiceState) -> None:
        self.version = state.version
        *self.spread.sums, version = state.groups
        self.spread.version = int(version)
        self.tasks = {key: Counts(s, f, int(v)) for key, (s, f, v) in state.tasks.items()}


class BetaForecaster(Outcomes):
    """A Beta posterior per task, for tasks that are drawn again and again."""

    kind = "beta"

    def forecast(self, tasks: Sequence[Task]) -> list[Forecast]:
        mean, strength = self.spread.mean, self.spread.strength
        found: list[Forecast] = []
        for task in tasks:
            own = self.tasks.get(key_of(task))
            counts = (own or Counts()).at(self.version, self.forget)
            a = strength * mean + counts.passes
            b = strength * (1 - mean) + counts.fails
            found.append(
                Forecast(a / (a + b), learning_value(a, b, self.group_size), own is not None)
            )
        return found


def learning_value(a: float, b: float, group_size: int) -> float:
    """E[p (1 - p) (1 - p^G - (1 - p)^G)] for p of Beta(a, b), in closed form."""

    def moment(passes: int, fails: int) -> float:
        """E[p^passes (1 - p)^fails]."""
        return exp(
            lgamma(a + passes)
            - lgamma(a)
            + lgamma(b + fails)
            - lgamma(b)
            + lgamma(a + b)
            - lgamma(a + b + passes + fails)
        )

    return moment(1, 1) - moment(group_size + 1, 1) - moment(1, group_size + 1)


def key_of(task: Task) -> str:
    """The key that outcomes of a task are counted under: played noisily, it is another one."""
    return f"{task.id}~{task.noise}" if task.noise else task.id


def still_weighing(tasks: Mapping[str, Counts], version: int, forget: float) -> dict[str, Counts]:
    """The counts that have not faded away."""
    found = {key: counts.at(version, forget) for key, counts in tasks.items()}
    return {key: c for key, c in found.items() if c.passes + c.fails >= NEGLIGIBLE}
