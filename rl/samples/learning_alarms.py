"""Alarms of learning: a metric that went, within a few steps, where it does not go in a healthy run.

In: metrics as series. Out: alarms, each with its step and its figures. A rule compares the median of the last
few steps with that of up to twenty steps before them, so that it needs no scale of its own; what moves slowly
is left to the bounds of `rl.stop_config`. The rise of a reward without its task is here too. An alarm says
what was seen, never why, and stops nothing. No clock, no files.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# A rule compares with the median of so many steps before the last few: at most, at least.
LONG, FEWEST = 20, 5
# Rewards are compared over means of so many steps.
_REWARD_STEPS = 10
# A total reward rose by so much, and `solved` by less than this share of it.
_RISE, _SHARE = 0.15, 0.2


class Points(Protocol):
    """One metric over the steps."""

    @property
    def steps(self) -> Sequence[int]:
        """Learner steps, ascending."""
        ...

    @property
    def values(self) -> Sequence[float]:
        """A finite value of each."""
        ...


@dataclass(frozen=True)
class Alarm:
    """One alarm, such as step 118, key "loss/entropy", text "entropy fell from 0.41 to 0.06 by step 118"."""

    step: int
    key: str
    text: str


@dataclass(frozen=True)
class Rule:
    """A metric went `how` by `factor` and by more than `least`, in the median of the last `short` steps.

    key: of the metric; `*` stands for each environment. name: what a reader calls it. apart: it is also
    beyond half of `factor` times every single step before, for a metric of which single steps stand out.
    """

    key: str
    name: str
    how: Literal["rose", "fell"]
    factor: float
    least: float = 0.0
    short: int = 3
    apart: bool = False

    def reads(self, key: str) -> bool:
        """True if it looks at the metric."""
        start, star, end = self.key.partition("*")
        if not star:
            return key == self.key
        return key.startswith(start) and key.endswith(end) and key != f"{start}all{end}"

    def alarms(self, key: str, points: Points) -> Iterator[Alarm]:
        """One alarm for each stretch of steps in which it holds, at the first of them."""
        values = np.asarray(points.values, dtype=np.float64)
        begin = FEWEST + self.short - 1
        if len(values) <= begin:
            return
        now, before, largest = _compared(values, self.short)
        if self.how == "rose":
            holds = (now > self.factor * before) & (now - before > self.least)
            holds &= (now > self.factor / 2 * largest) | (not self.apart)
            # Without a scale of its own a rule has none to say so of what was 0 until now.
            holds &= (largest > 0) | (self.least > 0)
        else:
            holds = (self.factor * now < before) & (before - now > self.least)
        start, star, end = self.key.partition("*")
        where = f"{key[len(start) : -len(end)]}: " if star else ""
        for i in np.flatnonzero(holds & ~np.concatenate([[False], holds[:-1]])):
            step = points.steps[begin + int(i)]
            yield Alarm(
                step,
                key,
                f"{where}{self.name} {self.how} from {before[i]:.3g} to {now[i]:.3g} by step {step}",
            )


RULES = (
    Rule("loss/entropy", "entropy", "fell", 4, 0.005),
    Rule("loss/entropy", "entropy", "rose", 4, 0.1),
    Rule("optim/grad_norm", "gradient norm", "rose", 5, short=1, apart=True),
    # After one bad update there may be no further step.
    Rule(
        "learn/all/kl_behaviour",
        "KL to the behaviour policy",
        "rose",
        10,
        0.05,
        short=1,
        apart=True,
    ),
    Rule("learn/all/clipped", "share of clipped tokens", "rose", 5, 0.1),
    Rule("parity/mean_abs_dlogp", "gap of engine and learner", "rose", 10, 0.02),
    Rule("rollout/*/completion_tokens", "tokens that it writes per episode", "rose", 2.5, 10),
    Rule("rollout/*/completion_tokens", "tokens that it writes per episode", "fell", 4, 10),
    Rule("router/load_violation_max", "fullest expert's excess load", "rose", 1.75, 0.75),
    Rule("router/idle_experts", "number of experts without tokens", "rose", 1.5, 0.5),
)


def learning_alarms(series: Mapping[str, Points]) -> list[Alarm]:
    """The alarms of a run's metrics, by step. What stays where it went is one alarm."""
    found = [*sudden_changes(series), *hacked_rewards(series)]
    return sorted(found, key=lambda alarm: alarm.step)


def watched(keys: Iterable[str]) -> list[str]:
    """Those of the metrics that alarms are made of."""
    return [
        key
        for key in keys
        if any(rule.reads(key) for rule in RULES)
        or key.startswith("reward/")
        or (key.startswith("rollout/") and key.endswith("/reward"))
    ]


def sudden_changes(series: Mapping[str, Points]) -> Iterator[Alarm]:
    """Alarms of the rules."""
    for key in sorted(series):
        for rule in RULES:
            if rule.reads(key):
                yield from rule.alarms(key, series[key])


def hacked_rewards(series: Mapping[str, Points]) -> Iterator[Alarm]:
    """Rewards that rose though the tasks are solved no more often: perhaps a way around the task.

    One alarm for an environment at most, at the step since when its reward rose."""
    start, end = "reward/", "/solved"
    for key in sorted(series):
        if not (key.startswith(start) and key.endswith(end)):
            continue
        env = key[len(start) : -len(end)]
        total, solved = series.get(f"rollout/{env}/reward"), series[key]
        if total is None or list(total.steps) != list(solved.steps):
            continue
        since = _hacked_since(total.values, solved.values)
        if since is None:
            continue
        step = total.steps[since]
        (before, after), (was, now) = (_around(one.values, since) for one in (total, solved))
        yield Alarm(
            step,
            f"rollout/{env}/reward",
            f"{env}: since step {step} the reward rose from {before:.2f} to {after:.2f}, while solved went "
            f"from {was:.2f} to {now:.2f}{_most_risen(series, env, step)}: look whether the policy earns it "
            "without the task",
        )


def _compared(values: Floats, short: int) -> tuple[Floats, Floats, Floats]:
    """For each step that has enough before it: the median of the last `short`, and the median and the
    largest of those before."""
    count = len(values) - FEWEST - short + 1
    # Steps that a short series lacks before its first are no values.
    padded = np.concatenate([np.full(LONG - FEWEST, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, LONG)[:count]
    last = np.lib.stride_tricks.sliding_window_view(values, short)[FEWEST:]
    return np.median(last, 1), np.nanmedian(windows, 1), np.nanmax(windows, 1)


def _around(values: Sequence[float], since: int) -> tuple[float, float]:
    """Means of the steps from `since` on, and of the last ones."""
    return _mean(values[since:][:_REWARD_STEPS]), _mean(values[-_REWARD_STEPS:])


def _hacked_since(total: Sequence[float], solved: Sequence[float]) -> int | None:
    """Where the steps begin since whose mean the total rose, and `solved` by less than its share of that;
    the one of the largest rise."""
    found: tuple[float, int] | None = None
    for i in range(len(total) - 2 * _REWARD_STEPS + 1):
        up, done = (after - before for before, after in (_around(total, i), _around(solved, i)))
        if up >= _RISE and done < up * _SHARE and (found is None or up > found[0]):
            found = up, i
    return None if found is None else found[1]


def _most_risen(series: Mapping[str, Points], env: str, since: int) -> str:
    """The named reward that rose most since a step, said; "" where none did."""
    most, said = 0.0, ""
    for key, one in series.items():
        if not key.startswith(f"reward/{env}/") or len(one.steps) < 2 * _REWARD_STEPS:
            continue
        start = min(bisect_left(one.steps, since), len(one.steps) - _REWARD_STEPS)
        before, after = _around(one.values, start)
        if after - before > most:
            name = key.removeprefix(f"reward/{env}/")[:60]
            most, said = after - before, f"; {name} rose most, from {before:.2f} to {after:.2f}"
    return said


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
