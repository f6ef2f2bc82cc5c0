"""The overview of one run as plain data: figures, charts, tables; what the page draws."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rl.dashboard import charts
from rl.dashboard.change_points import ChangePoint
from rl.dashboard.run_data import RunData
from rl.dashboard.series import Series, environments, mean, recent

NONE = "-"


@dataclass(frozen=True)
class Figure:
    """A number with its name and a remark, such as ("reward", "0.82", "mean of the last 10 steps")."""

    name: str
    value: str
    remark: str


def figures(run: RunData) -> list[Figure]:
    """The first line of the page."""
    steps = f"of {run.steps}" if run.steps else "steps"
    status = run.status
    stage = status.stage if status is not None and run.state() == "running" else ""
    return [
        Figure("state", run.state(), stage or written(run)),
        Figure("step", str(run.step), steps),
        Figure(
            "reward", said(recent(run.series, "rollout/all/reward")), "mean of the last 10 steps"
        ),
        Figure("held-out", *_held_out(run)),
        Figure("tokens/s", said(recent(run.series, "time/tokens_per_second"), 0), "last 10 steps"),
        Figure("staleness", said(recent(run.series, "staleness/mean")), _bound(run)),
    ]


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
    envs = environments(series, "rollout", "reward")
    reward = [(env, series[f"rollout/{env}/reward"]) for env in envs]
    held_out = [
        (env, series[f"eval/{env}/pass_rate"]) for env in environments(series, "eval", "pass_rate")
    ]
    stale = [(n, series[f"staleness/{n}"]) for n in ("mean", "max") if f"staleness/{n}" in series]
    return {
        "reward": charts.lines(
            "reward per environment", reward, marks=_marks(run, "rollout", envs, "reward")
        ),
        "held_out": charts.lines(
            "held-out pass rate",
            held_out,
            share=True,
            marks=_marks(run, "eval", [env for env, _ in held_out], "pass_rate"),
        ),
        "throughput": charts.lines("tokens per second", _some(run, "time/tokens_per_second")),
        "staleness": charts.lines("staleness, versions", stale),
        "split": charts.shares("seconds of a step", time_split(run)),
        "sync": charts.lines(
            "seconds of a weight sync, beside the next step", _some(run, "time/sync_seconds")
        ),
    }


def _marks(
    run: RunData, kind: str, envs: Sequence[str], name: str
) -> list[tuple[str, ChangePoint]]:
    return [(env, point) for env in envs for point in run.changes.get(f"{kind}/{env}/{name}", ())]


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
    """The held-out table."""
    rates = run.held_out
    rows = [{"env": env, **_pair(*pair)} for env, pair in rates.items()]
    whole = [pair for pair in rates.values() if None not in pair]
    if len(whole) > 1 and len(whole) == len(rates):
        first, last = (mean([pair[i] or 0.0 for pair in whole]) for i in (0, 1))
        rows.append({"env": "mean", **_pair(first, last)})
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


def _held_out(run: RunData) -> tuple[str, str]:
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
