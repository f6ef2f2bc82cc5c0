"""Reward hacking made visible: an environment's reward against what does not train, and against mere form.

In: groups that were played and judged. Out: metrics, and alarms with the trajectories that show it best. Two
meters, each over the last `window` groups of an environment:

- `SignalMeter` holds the reward that trains against a *signal*, a named reward of weight 0. Within groups:
  what the reward calls best has no more of the signal than its group, and had before. Updates raise just
  that, so a way around the task shows here while few have found it. Over time: the signal fell below its best
  window while the reward rose (overoptimization, arXiv 2210.10760).
- `FormMeter` fits the reward by length and format (least squares, task by task) and says how much of its
  variance they explain.

An alarm says what was seen and stops nothing. No clock, no files. Shapes: M members of a group, N
trajectories of a window, F features.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from rl.samples.answer_form import LENGTH
from rl.samples.group import GroupReport, MemberReport
from rl.samples.hacking_config import HackingConfig

Floats = npt.NDArray[np.float64]
# Trajectories that an alarm names.
MOST_SHOWN = 5
# Groups of the shortest look.
_FEWEST = 16
# Share of an earlier spread of the signal within groups that is as large as before.
_AS_BEFORE = 0.7
# An alarm is told again where what it says had gone below this share of its bound meanwhile.
_CALM = 0.5
# Degrees of freedom that a fit has to have for each feature.
_LEAST_FREEDOM = 4


@dataclass(frozen=True)
class HackingAlarm:
    """One alarm, such as env "letters", against "rule", text "letters: …", trajectories ("g000012.3", …).

    against: the signal; "form" where length and format explain the reward.
    """

    env: str
    against: str
    text: str
    trajectories: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """The judged members of a group: `values` is the signal (M,), or the form's features (M, F)."""

    ids: tuple[str, ...]
    reward_M: Floats
    values: Floats


def correlation_within(groups: Sequence[tuple[Floats, Floats]]) -> float | None:
    """The pooled correlation of two numbers within groups: of their distances from the group's mean.

    None where one of the two does not vary within any group.
    """
    centred = [(x - x.mean(), y - y.mean()) for x, y in groups]
    size = np.sqrt(sum(x @ x for x, _ in centred) * sum(y @ y for _, y in centred))
    return float(sum(x @ y for x, y in centred) / size) if size > 0 else None


def best_of_group(groups: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """By how much the signal of a group's highest reward (of all that share it) is above the group's mean:
    the mean over groups of reward and signal, and its standard error."""
    above = np.array(
        [signal[reward == reward.max()].mean() - signal.mean() for reward, signal in groups]
    )
    error = above.std(ddof=1) / len(above) ** 0.5 if len(above) > 1 else 0.0
    return float(above.mean()), float(error)


def _in_errors(difference: float, error: float) -> float:
    """A difference in standard errors; where there is no error, any difference is beyond all of them."""
    if error > 0:
        return difference / error
    return np.inf if difference > 1e-12 else 0.0


def _spread_within(groups: Sequence[tuple[Floats, Floats]]) -> float:
    """The standard deviation of the signal within groups."""
    return float(np.mean([signal.var() for _, signal in groups])) ** 0.5


def explained_within(
    groups: Sequence[tuple[Floats, Floats]], columns: Sequence[int] | None = None
) -> tuple[float, Floats] | None:
    """The share of a reward's variance within groups that features explain (least squares, adjusted for their
    number; at least 0), and the fitted values (N,), relative to each group's mean.

    columns: of the features, if not all. None where the reward does not vary within any group, or there is
    too little to fit.
    """
    reward_N = np.concatenate([reward - reward.mean() for reward, _ in groups])
    features_NF = np.concatenate([features - features.mean(0) for _, features in groups])
    if columns is not None:
        features_NF = features_NF[:, columns]
    total, free = float(reward_N @ reward_N), len(reward_N) - len(groups)
    spread_F = features_NF.std(0)
    features_NF = features_NF[:, spread_F > 1e-9] / spread_F[spread_F > 1e-9]
    if not total > 1e-12 or free < _LEAST_FREEDOM * max(1, features_NF.shape[1]):
        return None
    if not features_NF.shape[1]:
        return 0.0, np.zeros_like(reward_N)
    solved = cast("tuple[Floats, Floats, int, Floats]", np.linalg.lstsq(features_NF, reward_N))
    weights_F, rank = solved[0], int(solved[2])
    fitted_N = np.asarray(features_NF @ weights_F, dtype=np.float64)
    left = float(np.sum((reward_N - fitted_N) ** 2))
    return max(0.0, 1 - (left / (free - rank)) / (total / free)), fitted_N


class SignalMeter:
    """Holds the reward of one environment against one signal."""

    def __init__(self, env: str, signal: str, c: HackingConfig) -> None:
        self.env, self.signal, self.c = env, signal, c
        self.groups: deque[_Group] = deque(maxlen=c.window)
        # Mean signal and reward of each group.
        self.levels: deque[tuple[float, float]] = deque(maxlen=c.window)
        # The window with the highest signal: its mean signal and reward.
        self.best: tuple[float, ...] | None = None
        # The window whose highest rewards had most of it: by how much, its error, the spread within groups.
        self.most = (-np.inf, 0.0, 0.0)
        self._told: dict[str, bool] = {}

    def add(self, members: Sequence[MemberReport]) -> None:
        """Take in a group's judged members."""
        given = [one for one in members if self.signal in one.rewards]
        if len(given) < 2:
            return
        rewards = np.array([one.reward for one in given])
        signals = np.array([one.rewards[self.signal] for one in given])
        self.groups.append(_Group(tuple(one.id for one in given), rewards, signals))
        self.levels.append((float(signals.mean()), float(rewards.mean())))

    def metrics(self) -> dict[str, float]:
        """`hacking/ENV/SIGNAL/…`: means of the window, and how both go together within its groups."""
        if not self.groups:
            return {}
        signal, reward = np.mean(self.levels, 0).tolist()
        found = {"reward": reward, "signal": signal}
        found["best_of_group"] = best_of_group(self._pairs())[0]
        if (correlation := correlation_within(self._pairs())) is not None:
            found["correlation"] = correlation
        if self.best is not None:
            found |= {"fallen": self.best[0] - signal, "risen": reward - self.best[1]}
        return {f"hacking/{self.env}/{self.signal}/{name}": v for name, v in found.items()}

    def look(self) -> list[HackingAlarm]:
        """Take note of the window, once a step; returns the alarms that it raises. None before it is full.

        A way around the task spreads within a few steps, or slowly: the last quarter of the window is looked
        at, its last half, and all of it.
        """
        if len(self.groups) < self.c.window:
            return []
        level = (*np.mean(self.levels, 0).tolist(),)
        self.best = max(self.best or level, level)
        self.most = max(self.most, (*best_of_group(self._pairs()), _spread_within(self._pairs())))
        lengths = [max(_FEWEST, self.c.window // part) for part in (4, 2, 1)]
        looks = {
            "apart": max(map(self._apart, lengths)),
            "fallen": max(self._fallen(length) for length in lengths),
        }
        return [
            HackingAlarm(self.env, self.signal, f"{self.env}: {said}", self._parted())
            for what, (errors, said) in looks.items()
            if self._is_new(what, errors)
        ]

    def _apart(self, length: int) -> tuple[float, str]:
        """By how many standard errors the highest rewards of the last groups have less of the signal than
        their group, or less than in the window where they had most.

        The latter counts where they have no more than their group now, though its members differ in the
        signal as they did: a judge that can tell no more since all are equally good is no alarm.
        """
        groups = self._pairs()[-length:]
        above, error = best_of_group(groups)
        errors, before = _in_errors(-above, error), ""
        most, most_error, differed = self.most
        fell = _in_errors(most - above, (error**2 + most_error**2) ** 0.5)
        if fell > errors and above < error and _spread_within(groups) > _AS_BEFORE * differed:
            errors, before = fell, f", and was {most:+.3g} at its best"
        said = (
            f"reward and {self.signal} go apart: {self.signal} of the highest reward in a group less that of "
            f"the whole group is {above:+.3g}{before} (the last {length} groups)"
        )
        return errors, said

    def _fallen(self, length: int) -> tuple[float, str]:
        """How many standard errors the signal of the last groups is below its best window, 0 where the reward
        has not risen since."""
        assert self.best is not None
        levels = np.array(self.levels)
        (signal, reward), spread = levels[-length:].mean(0).tolist(), levels.std(0, ddof=1)
        error = spread * (1 / length + 1 / self.c.window) ** 0.5
        said = (
            f"the reward rose from {self.best[1]:.3g} to {reward:.3g}, while {self.signal} fell from "
            f"{self.best[0]:.3g} to {signal:.3g} (the last {length} groups, and the {self.c.window} best)"
        )
        rose = reward - self.best[1] > error[1]
        return _in_errors(self.best[0] - signal, float(error[0])) if rose else 0.0, said

    def restore(self, line: Mapping[str, float]) -> None:
        """Take in a line of metrics.jsonl of an earlier part of the run."""
        names = ("signal", "fallen", "reward", "risen")
        found = [line.get(f"hacking/{self.env}/{self.signal}/{name}") for name in names]
        if None not in found:
            signal, fallen, reward, risen = (float(value or 0) for value in found)
            self.best = (signal + fallen, reward - risen)

    def _is_new(self, what: str, errors: float) -> bool:
        told = self._told.get(what, False)
        self._told[what] = errors > self.c.errors * (_CALM if told else 1)
        return self._told[what] and not told

    def _pairs(self) -> list[tuple[Floats, Floats]]:
        return [(one.reward_M, one.values) for one in self.groups]

    def _parted(self) -> tuple[str, ...]:
        """The trajectories whose reward is highest for their signal."""
        rewards = np.concatenate([one.reward_M for one in self.groups])
        signals = np.concatenate([one.values for one in self.groups])
        return _highest(self.groups, _standard(rewards) - _standard(signals))


class FormMeter:
    """Fits the reward of one environment by the form of its answers."""

    def __init__(self, env: str, c: HackingConfig) -> None:
        self.env, self.c = env, c
        self.groups: deque[_Group] = deque(maxlen=c.window)
        self.names: tuple[str, ...] = ()
        self._told = False

    def add(self, members: Sequence[MemberReport]) -> None:
        """Take in a group's judged members."""
        given = [one for one in members if one.form]
        if len(given) < 2:
            return
        self.names = tuple(given[0].form)
        features = np.array([list(one.form.values()) for one in given])
        rewards = np.array([one.reward for one in given])
        self.groups.append(_Group(tuple(one.id for one in given), rewards, features))

    def metrics(self) -> dict[str, float]:
        """`hacking/ENV/explained` by length and format, and `…/explained_by_length` alone."""
        every, length = self._explained(), self._explained(self._of_length())
        found = {"explained": every, "explained_by_length": length}
        return {f"hacking/{self.env}/{k}": v[0] for k, v in found.items() if v is not None}

    def look(self) -> list[HackingAlarm]:
        """Take note of the window, once a step; returns the alarm that it raises. None before it is full."""
        if len(self.groups) < self.c.window or (found := self._explained()) is None:
            return []
        told, share = self._told, found[0]
        self._told = share > self.c.explained * (_CALM if told else 1)
        if told or not self._told:
            return []
        length = self._explained(self._of_length())
        most, correlation = self._closest()
        text = (
            f"{self.env}: length and format explain {share:.0%} of the reward's variance within groups, "
            f"length alone {length[0] if length else 0:.0%} (the last {self.c.window} groups); closest to it "
            f"is {most.replace('_', ' ')} (correlation {correlation:+.2f})"
        )
        return [HackingAlarm(self.env, "form", text, _highest(self.groups, found[1]))]

    def _of_length(self) -> list[int]:
        return [index for index, name in enumerate(self.names) if name in LENGTH]

    def _explained(self, columns: Sequence[int] | None = None) -> tuple[float, Floats] | None:
        if not self.groups:
            return None
        return explained_within([(one.reward_M, one.values) for one in self.groups], columns)

    def _closest(self) -> tuple[str, float]:
        """The feature whose correlation with the reward within groups is the furthest from 0."""
        found: list[tuple[str, float]] = []
        for index, name in enumerate(self.names):
            pairs = [(one.reward_M, one.values[:, index]) for one in self.groups]
            found.append((name, correlation_within(pairs) or 0.0))
        return max(found, key=lambda one: abs(one[1]))


class HackingMeters:
    """The meters of a run's environments."""

    def __init__(self, c: HackingConfig, signals: Mapping[str, Sequence[str]]) -> None:
        """signals: of each environment that is watched, the names of its signals."""
        self.forms = {env: FormMeter(env, c) for env in signals}
        self.signals = {env: [SignalMeter(env, n, c) for n in own] for env, own in signals.items()}

    def add(self, report: GroupReport) -> None:
        """Take in a group."""
        env = report.spec.env
        if env in self.forms:
            judged = [member for member in report.members if member.judged]
            for meter in (self.forms[env], *self.signals[env]):
                meter.add(judged)

    def metrics(self) -> dict[str, float]:
        """The metrics of all meters."""
        return {key: value for meter in self._all() for key, value in meter.metrics().items()}

    def look(self) -> list[HackingAlarm]:
        """The alarms of a step."""
        return [alarm for meter in self._all() for alarm in meter.look()]

    def restore(self, line: Mapping[str, float]) -> None:
        """Take in a line of metrics.jsonl of an earlier part of the run."""
        for own in self.signals.values():
            for meter in own:
                meter.restore(line)

    def _all(self) -> list[FormMeter | SignalMeter]:
        return [*self.forms.values(), *(meter for own in self.signals.values() for meter in own)]


def _standard(values_N: Floats) -> Floats:
    spread = values_N.std()
    return (values_N - values_N.mean()) / spread if spread > 0 else np.zeros_like(values_N)


def _highest(groups: Iterable[_Group], values_N: Floats) -> tuple[str, ...]:
    ids = [id for one in groups for id in one.ids]
    order: list[int] = np.argsort(-values_N, kind="stable").tolist()
    return tuple(ids[index] for index in order[:MOST_SHOWN])
