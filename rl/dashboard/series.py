"""Metrics as series: per key the steps and the values, thinned out for a chart, found by expression."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Strict, TypeAdapter, ValidationError

from rl.dashboard.expression import found_in
from rl.dashboard.growing_lines import lines_of, parse

_NUMBERS = TypeAdapter(dict[str, Annotated[float, Strict()]])


@dataclass
class Series:
    """One key over the steps, such as steps [1, 2, 3], values [0.5, 0.6, 0.7]. It grows at its end.

    times: when each was written (unix seconds), of what metrics.jsonl holds.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]


def metrics_line(line: bytes) -> Mapping[str, object] | None:
    """One line of metrics.jsonl; None where it is none."""
    record: Mapping[str, object] | None
    try:
        record = _NUMBERS.validate_json(line)
    except ValidationError:  # not numbers alone
        record = parse(line)
    return None if record is None or number(record.get("step")) is None else record


@dataclass(frozen=True)
class NotFinite:
    """One line of not_finite.jsonl: keys that were nan or infinite at a step, and so have no value."""

    step: int
    keys: list[str]


not_finite_line = lines_of(TypeAdapter(NotFinite))


def not_finite(record: Mapping[str, object]) -> list[str]:
    """Keys of one line of metrics.jsonl whose value is nan or an infinity, as others may write it."""
    return [k for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)]


def add(series: dict[str, Series], record: Mapping[str, object]) -> bool:
    """Take in one line of metrics.jsonl; what is not a finite number is left out. False if it was no line."""
    step, time = number(record.get("step")), number(record.get("time"))
    if step is None:
        return False
    for key, value in record.items():
        value = number(value)
        if key in ("step", "time") or value is None:
            continue
        one = series.setdefault(key, Series())
        one.steps.append(int(step))
        one.values.append(value)
        one.times.append(0.0 if time is None else time)
    return True


def number(value: object) -> float | None:
    """A finite number of a foreign file, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def recent(series: Mapping[str, Series], key: str, steps: int = 10) -> float | None:
    """Mean of the last values of a key; None where it has none."""
    one = series.get(key)
    if one is None:
        return None
    values = one.values[-steps:]
    return sum(values) / len(values)


def thin(one: Series, points: int = 400, begin: float | None = None) -> list[list[float]]:
    """[step, value] pairs, `points` at most: of each stretch the lowest and the highest.

    begin: in place of the step, the seconds since then.
    """
    count = len(one.values)
    at = one.steps if begin is None else [round(time - begin, 3) for time in one.times]
    if count <= points:
        return [[x, v] for x, v in zip(at, one.values, strict=True)]
    shown: list[list[float]] = []
    stretches = max(1, points // 2)
    for i in range(stretches):
        part = range(i * count // stretches, (i + 1) * count // stretches)
        low = min(part, key=one.values.__getitem__)
        high = max(part, key=one.values.__getitem__)
        shown += [[at[j], one.values[j]] for j in sorted({low, high})]
    return shown


def smoothed(one: Series, weight: float) -> Series:
    """Exponential means: each value counts `weight` times as much as the one after it; 0: as they are."""
    means, mean, total = [], 0.0, 0.0
    for value in one.values:
        mean, total = weight * mean + value, weight * total + 1
        means.append(mean / total)
    return Series(one.steps, means, one.times)


def matching(keys: Iterable[str], expression: str) -> list[str]:
    """Keys in which the regular expression is found, sorted. Raises ValueError with one sentence."""
    return found_in(expression, keys)


def environments(keys: Iterable[str], kind: str, name: str) -> list[str]:
    """Environments that have a key `kind/ENV/name`, sorted; `all` is none of them."""
    start, end = f"{kind}/", f"/{name}"
    found = {k[len(start) : -len(end)] for k in keys if k.startswith(start) and k.endswith(end)}
    return sorted(found - {"all", ""})


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)
