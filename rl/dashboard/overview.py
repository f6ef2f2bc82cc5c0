"""The overview of one run as plain data: figures, charts, tables; what the page draws."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rl.dashboard import charts
from rl.dashboard.learning import (
    HELD_OUT,
    MEAN,
    REWARD,
    drawn,
    evaluation_lines,
    reward_lines,
    stability_lines,
)
from rl.dashboard.run_data import RunData
from rl.dashboard.series import Series, mean, recent
from rl.record.evaluations import EvaluationRow, Rate, best_of

NONE = "-"


@dataclass(frozen=True)
class Figure:
    """A number with its name and a remark, such as ("reward", "0.82", "mean of the last 10 steps")."""

    name: str
    value: str
    remark: str


def figures(run: RunData, now: float | None = None) -> list[Figure]:
    """The first line of the page."""
    steps = f"of {run.steps}" if run.steps else "steps"
    if (left := seconds_left(run)) is not None:
        steps += f", about {long(left)} left"
    status = run.status
    stage = status.stage if status is not None and run.state() == "running" else ""
    return [
        Figure("state", run.state(), stage or written(run)),
        Figure("step", str(run.step), steps),
        Figure("started", *_started(run, time.time() if now is None else now)),
        Figure("held-out", *_held_out(run)),
        Figure(
            "reward", said(recent(run.series, "rollout/all/reward")), "mean of the last 10 steps"
        ),
        Figure("tokens/s", said(recent(run.series, "time/tokens_per_second"), 0), "last 10 steps"),
        Figure("staleness", said(recent(run.series, "staleness/mean")), _bound(run)),
    ]


def seconds_left(run: RunData) -> float | None:
    """Seconds until the last step, at the pace of the last 20; None where that is not known, or over."""
    one = run.series.get("time/total_seconds")
    if one is None or len(one.times) < 2 or run.state() != "running" or not run.steps:
        return None
    times = one.times[-21:]
    pace = (times[-1] - times[0]) / (len(times) - 1)
    return max(0, run.steps - run.step) * pace if pace > 0 else None


def long(seconds: float) -> str:
    """A duration for a reader, such as "2.5 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"


def duration(run: RunData, now: float) -> float | None:
    """Seconds from the first sign of life to the last, or to now; None where there is none."""
    begin = begun_at(run)
    one = run.series.get("time/total_seconds")
    last = max([one.times[-1] if one else 0.0, *(span.end for span in run.spans[-1:])])
    end = now if run.state(now) in ("starting", "running") else last
    return None if begin is None or end < begin else end - begin


def begun_at(run: RunData) -> float | None:
    """When the run began (unix seconds); None where nothing tells."""
    told = run.starts[0].time if run.starts else None
    spans = [span.start for span in run.spans[:1]]
    return told or min(spans, default=None) or run.begin or None


def command(run: RunData) -> str:
    """The command line of the last start, to be copied; "" where it is not told."""
    words = run.starts[-1].command if run.starts else None
    return shlex.join(["dorado", *words[1:]])[:2000] if words else ""


def commit(run: RunData) -> str:
    """The commit of Dorado that the run is of; "" where it is not told."""
    start = run.starts[-1] if run.starts else None
    if start is None or not start.commit:
        return ""
    return start.commit[:12] + (", with changes" if start.changed else "")


def written(run: RunData, now: float | None = None) -> str:
    """Say when the run last wrote something."""
    if not run.written:
        return "nothing written yet"
    seconds = max(0.0, (time.time() if now is None else now) - run.written)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"last written {seconds / size:.0f} {unit} ago"
    return f"last written {seconds:.0f} s ago"


def said(value: float | None, digits: int = 2) -> str:
    """A number for a reader; a dash where there is none."""
    return NONE if value is None else f"{value:,.{digits}f}"


def overview_charts(run: RunData) -> dict[str, charts.Options]:
    """The charts of the page by a name of ours, those without data included."""
    series = run.series
    stale = [(n, series[f"staleness/{n}"]) for n in ("mean", "max") if f"staleness/{n}" in series]
    return {
        HELD_OUT: drawn(evaluation_lines(run)),
        REWARD: drawn(reward_lines(run)),
        **{name: drawn(one) for name, one in stability_lines(run).items()},
        "throughput": charts.lines("tokens per second", _some(run, "time/tokens_per_second")),
        "staleness": charts.lines("staleness, versions", stale),
        "split": charts.shares("seconds of a step", time_split(run)),
        "sync": charts.lines(
            "seconds of a weight sync, beside the next step", _some(run, "time/sync_seconds")
        ),
    }


def time_split(run: RunData) -> list[tuple[str, Series]]:
    """A learner step's seconds in parts that add up to it.

    Wait for policy is what remains: the learner waits until the version before is with the engines, and
    copies its weights.
    """
    names = ("total", "wait_for_batch", "learner")
    found = [run.series.get(f"time/{name}_seconds") for name in names]
    if any(one is None for one in found):
        return []
    by_step = [dict(zip(one.steps, one.values, strict=True)) for one in found if one is not None]
    total, batch, learner = by_step
    steps = [step for step in total if step in batch and step in learner]
    rest = [max(0.0, total[s] - batch[s] - learner[s]) for s in steps]
    return [
        ("wait for batch", Series(steps, [batch[s] for s in steps])),
        ("wait for policy", Series(steps, rest)),
        ("forward and backward", Series(steps, [learner[s] for s in steps])),
    ]


def held_out_rows(run: RunData) -> list[dict[str, str]]:
    """The held-out table: each environment before training and now, with intervals where they are known."""
    if run.evaluations:
        return _evaluated_rows(run.evaluations)
    rates = run.held_out
    rows = [{"env": env, **_pair(*pair)} for env, pair in rates.items()]
    whole = [pair for pair in rates.values() if None not in pair]
    if len(whole) > 1 and len(whole) == len(rates):
        first, last = (mean([pair[i] or 0.0 for pair in whole]) for i in (0, 1))
        rows.append({"env": MEAN, **_pair(first, last)})
    return rows


def _evaluated_rows(found: Sequence[EvaluationRow]) -> list[dict[str, str]]:
    """The environments' rows and that of their mean, from evaluations in the order of their ends."""
    of: dict[str, list[tuple[EvaluationRow, Rate]]] = {}
    for row in found:
        for env, rate in sorted(row.env.items()):
            of.setdefault(env, []).append((row, rate))
        if row.mean is not None and len(row.env) > 1:
            of.setdefault(MEAN, []).append((row, row.mean))
    rows = []
    for env, rates in sorted(of.items(), key=lambda one: (one[0] == MEAN, one[0])):
        before = rates[0][1] if rates[0][0].step == 0 else None
        last = rates[-1][1] if rates[-1][0].step > 0 else None
        best = max(rates, key=lambda one: one[1].pass_rate)
        gain = None if before is None or last is None else last.pass_rate - before.pass_rate
        rows.append(
            {
                "env": env,
                "before": NONE if before is None else str(before),
                "after": NONE if last is None else str(last),
                "best": f"{best[1].pass_rate:.2f} at {best[0].version}",
                "gain": "" if gain is None else f"{gain:+.2f}",
            }
        )
    return rows


def trajectory_rows(run: RunData) -> list[dict[str, str]]:
    """Trajectories in the index, per environment and split."""
    return [
        {
            "id": f"{one.env}\n{one.split}",
            "env": one.env,
            "split": one.split,
            "trajectories": f"{one.trajectories:,}",
            "faults": f"{one.faults:,}",
            "reward": said(one.reward),
        }
        for one in run.trajectories
    ]


def _pair(before: float | None, after: float | None) -> dict[str, str]:
    gain = None if before is None or after is None else after - before
    return {
        "before": said(before),
        "after": said(after),
        "gain": "" if gain is None else f"{gain:+.2f}",
    }


def _started(run: RunData, now: float) -> tuple[str, str]:
    begin, took = begun_at(run), duration(run, now)
    try:
        day = NONE if begin is None else f"{datetime.fromtimestamp(begin):%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # no time that a calendar has
        day = NONE
    return (
        day,
        "" if took is None else f"{long(took)} {'so far' if run.summary is None else 'long'}",
    )


def _held_out(run: RunData) -> tuple[str, str]:
    rows = [row for row in run.evaluations if row.mean is not None]
    best = best_of(rows)
    if best is not None and best.mean is not None:
        last, _, around = str(rows[-1].mean).rstrip(")").partition(" (")
        best_said = f"best {best.mean.pass_rate:.2f} at version {best.version}"
        more = best_said if len(rows) > 1 else f"at version {best.version}"
        return last, "; ".join(part for part in (around, more) if part)
    before, after = (
        [value for pair in run.held_out.values() if (value := pair[i]) is not None] for i in (0, 1)
    )
    if after:
        return said(mean(after)), f"{said(mean(before) if before else None)} before training"
    return (said(mean(before)), "before training") if before else (NONE, "not evaluated yet")


def _bound(run: RunData) -> str:
    bound = run.config.get("max_staleness")
    return f"bound {bound}" if isinstance(bound, int) else "last 10 steps"


def _some(run: RunData, key: str) -> list[tuple[str, Series]]:
    one = run.series.get(key)
    return [] if one is None else [(key, one)]
