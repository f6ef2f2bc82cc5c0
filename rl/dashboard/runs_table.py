"""The table of runs as plain data: a row for each run, with a small line of how it went."""

import time
from collections.abc import Sequence

from rl.dashboard.alerts import alerts
from rl.dashboard.overview import begun_at, duration, figures, written
from rl.dashboard.run_data import RunData
from rl.dashboard.series import Series, number, recent, smoothed, thin
from rl.record.evaluations import best_of

SPARK_WIDTH, SPARK_HEIGHT = 90, 22
_SPARK_POINTS = 40
Row = dict[str, object]


def run_row(run: RunData, address: str, now: float | None = None) -> Row:
    """One run: texts, numbers to sort by (None where there is none), and the points of its line."""
    now = time.time() if now is None else now
    held_out = next(figure for figure in figures(run, now) if figure.name == "held-out")
    judged = [row.mean.pass_rate for row in run.evaluations if row.mean is not None]
    best = best_of(run.evaluations)
    return {
        "name": run.name,
        "address": address,
        "state": run.state(now),
        "spark": spark(_line(run)),
        "step": f"{run.step} / {run.steps}",
        "at": run.step,
        "reward": recent(run.series, "rollout/all/reward"),
        "held_out": judged[-1] if judged else _plain(held_out.value),
        "best": None if best is None or best.mean is None else best.mean.pass_rate,
        "model": model(run),
        "envs": environments_said(run),
        "seed": number(run.config.get("seed")),
        "mode": str(run.config.get("mode", ""))[:40],
        "seconds": duration(run, now),
        "begun": begun_at(run),
        "alerts": len(alerts(run, now)),
        "written": written(run, now).removeprefix("last written "),
    }


def _plain(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _line(run: RunData) -> Series:
    """Held-out results where there are three or more, else the reward."""
    judged = [(row.version, row.mean.pass_rate) for row in run.evaluations if row.mean is not None]
    if len(judged) >= 3:
        judged.sort()
        return Series([version for version, _ in judged], [rate for _, rate in judged])
    return smoothed(run.series.get("rollout/all/reward", Series()), 0.6)


def spark(one: Series) -> str:
    """Points of a line in a box of `SPARK_WIDTH` by `SPARK_HEIGHT`, such as "0,20 45,10 90,2"."""
    points = thin(one, _SPARK_POINTS)
    if len(points) < 2:
        return ""
    left, right = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)
    across = SPARK_WIDTH / ((right - left) or 1.0)
    up = (SPARK_HEIGHT - 4) / ((high - low) or 1.0)
    return " ".join(
        f"{(x - left) * across:.1f},{SPARK_HEIGHT - 2 - (y - low) * up:.1f}" for x, y in points
    )


def model(run: RunData) -> str:
    """The policy in a few words: the last part of its path, or family and preset of a new one."""
    found = run.config.get("model")
    if not isinstance(found, dict):
        return ""
    if path := found.get("path"):
        return str(path).rstrip("/").rpartition("/")[2][:60]
    made = found.get("init")
    if not isinstance(made, dict):
        return ""
    return " ".join(str(made[key]) for key in ("family", "preset") if made.get(key))[:60]


def environments_said(run: RunData) -> str:
    """The names of its environments."""
    tables = run.config.get("env")
    found: Sequence[object] = tables if isinstance(tables, list) else ()
    names = [str(t.get("name") or t.get("id", "")) for t in found if isinstance(t, dict)]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6])[:200] + more
