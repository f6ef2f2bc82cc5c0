"""Charts of what a run learns and of how stable that is: the first ones of the overview and of a report.

In: a run. Out: charts by a name of ours, each with the metric that a click on it leads on from.
"""

from dataclasses import dataclass, replace

from rl.dashboard import charts
from rl.dashboard.change_points import ChangePoint
from rl.dashboard.intervals import add_best, add_whiskers
from rl.dashboard.run_data import RunData
from rl.dashboard.series import Series, environments
from rl.dashboard.svg_lines import Lines
from rl.record.evaluations import EvaluationRow, best_of

HELD_OUT, REWARD = "held_out", "reward"
MEAN = "mean"


@dataclass(frozen=True)
class Chart:
    """A chart of several metrics. lines: (name of the line, metric). remark: what a good one looks like."""

    title: str
    lines: tuple[tuple[str, str], ...]
    remark: str
    share: bool = False


STABILITY = {
    "entropy": Chart(
        "entropy, nats per token",
        (("entropy", "loss/entropy"),),
        "falls slowly; near 0 the policy tries nothing new",
    ),
    "gradient": Chart(
        "gradient norm before clipping",
        (("gradient norm", "optim/grad_norm"),),
        "flat; a jump comes before most collapses",
    ),
    "kl": Chart(
        "KL, and gap of engine and learner",
        (
            ("KL to the version that wrote", "learn/all/kl_behaviour"),
            ("KL to the engine", "learn/all/kl_engine"),
            ("gap of engine and learner", "parity/mean_abs_dlogp"),
        ),
        "small and flat; the gap is usually below 0.05",
    ),
    "length": Chart(
        "tokens written per trajectory",
        (
            ("mean", "rollout/all/completion_tokens"),
            ("median", "rollout/all/completion_tokens_p50"),
            ("9 of 10 below", "rollout/all/completion_tokens_p90"),
        ),
        "no jumps; a steady rise with a flat reward is padding",
    ),
    "clipped": Chart(
        "share of tokens without a gradient",
        (
            ("clipped or masked", "learn/all/clipped"),
            ("clipped, advantage > 0", "loss/clipped_pos"),
            ("clipped, advantage < 0", "loss/clipped_neg"),
        ),
        "small; what rises takes tokens out of the update",
    ),
    "zero_variance": Chart(
        "share of groups that teach nothing, and cut off",
        (
            ("all rewards equal", "rollout/all/zero_variance"),
            ("cut off at a limit", "rollout/all/truncated"),
        ),
        "near 1 the tasks are all solved, or all too hard",
        share=True,
    ),
}


def stability_lines(run: RunData) -> dict[str, Lines]:
    """The stability panel; a chart without data is left empty."""
    found: dict[str, Lines] = {}
    for name, one in STABILITY.items():
        there = [(line, key) for line, key in one.lines if key in run.series]
        marks = [(line, point) for line, key in there for point in run.changes.get(key, ())]
        named = [(line, run.series[key]) for line, key in there]
        found[name] = Lines(one.title, named, share=one.share, marks=marks)
    return found


def reward_lines(run: RunData) -> Lines:
    """The mean reward of the judged trajectories of each step, of all and per environment."""
    envs = environments(run.series, "rollout", "reward")
    named = [(env, run.series[f"rollout/{env}/reward"]) for env in envs]
    marks = [(e, point) for e in envs for point in run.changes.get(f"rollout/{e}/reward", ())]
    if len(named) > 1 and (whole := run.series.get("rollout/all/reward")) is not None:
        named = [(MEAN, whole), *named]
    return Lines("mean reward", named, marks=marks)


def evaluation_lines(run: RunData) -> Lines:
    """The held-out pass rate of each version that was evaluated: the mean with its interval, and each
    environment's. Of a run without evaluations.jsonl as its metrics have it."""
    rows = sorted((row for row in run.evaluations if row.mean), key=lambda row: row.version)
    envs = sorted({env for row in rows for env in row.env})
    if not rows:
        envs = environments(run.series, "eval", "pass_rate")
    points = {env: run.changes.get(f"eval/{env}/pass_rate", ()) for env in envs}
    marks = [(env, _at_version(run, point)) for env in envs for point in points[env]]
    if not rows:
        named = [(env, run.series[f"eval/{env}/pass_rate"]) for env in envs]
        return Lines("held-out pass rate by step", named, share=True, marks=marks)
    named = [(env, _rates(rows, env)) for env in envs]
    if len(envs) > 1:
        means = [row.mean.pass_rate for row in rows if row.mean]
        named = [(MEAN, Series([row.version for row in rows], means)), *named]
    whiskers = [
        (float(row.version), row.mean.low, row.mean.high)
        for row in rows
        if row.mean and row.mean.low is not None and row.mean.high is not None
    ]
    best = best_of(rows)
    return Lines(
        "held-out pass rate by policy version",
        named,
        share=True,
        marks=marks,
        whiskers=whiskers,
        best=(best.version, best.mean.pass_rate) if best and best.mean else None,
    )


def drawn(chart: Lines) -> charts.Options:
    """The chart for a page: a mean over the environments stands out among them."""
    options = charts.lines(chart.title, chart.named, share=chart.share, marks=chart.marks)
    if len(chart.named) > 1 and chart.named[0][0] == MEAN:
        options["series"][0]["lineStyle"] = {"width": 2.6}
        for one in options["series"][1:]:
            one["lineStyle"] = {"width": 1.2, "opacity": 0.65}
    if chart.best is not None:
        add_best(options, chart.named[0][0], *chart.best)
    if chart.whiskers:
        add_whiskers(options, chart.whiskers, charts.COLOURS[0])
    return options


def _rates(rows: list[EvaluationRow], env: str) -> Series:
    there = [(row.version, row.env[env].pass_rate) for row in rows if env in row.env]
    return Series([version for version, _ in there], [rate for _, rate in there])


def _at_version(run: RunData, point: ChangePoint) -> ChangePoint:
    """The same change at the version that was evaluated: metrics have it at the learner's step by then."""
    for row in run.evaluations:
        if row.version + row.lag == point.step:
            return replace(point, step=row.version)
    return point
