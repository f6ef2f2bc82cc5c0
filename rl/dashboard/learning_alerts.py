"""Alerts on what a run plays and learns, a pure function of its metrics. Thresholds: docs/dashboard.md."""

from collections.abc import Iterator, Mapping, Sequence

from rl.dashboard.alert import Alert, Level
from rl.dashboard.changes import said_changes
from rl.dashboard.drill_down import Query, drill_down
from rl.dashboard.run_data import RunData
from rl.dashboard.series import environments, mean, recent


def learning_alerts(run: RunData) -> list[Alert]:
    """The alerts, in no order."""
    return [*_rollout(run), *_learning(run), *_learner(run), *_changes(run)]


def _at(
    run: RunData,
    level: Level,
    text: str,
    key: str,
    step: int | None = None,
    more: Query | None = None,
) -> Alert:
    """An alert on a metric, at its newest step or at the one given, that leads to the trajectories of it.

    more: parameters on top of those of the step."""
    if step is None and key in run.series:
        step = run.series[key].steps[-1]
    if step is None:
        return Alert(level, text)
    query = [*drill_down(run, key, step), *(more or ())]
    return Alert(level, text, step, tuple(query), "trajectories")


def _rollout(run: RunData) -> Iterator[Alert]:
    series = run.series
    for env in environments(series, "env", "breaker"):
        if series[f"env/{env}/breaker"].last > 0:
            step = series[f"env/{env}/breaker"].steps[-1]
            said = f"{env}: its breaker is open, so it gets no new episodes."
            yield Alert("error", said, step, (("env", env), ("fault", "with")), "trajectories")
    for env in environments(series, "rollout", "trajectories"):
        played = recent(series, f"rollout/{env}/trajectories") or 0
        faults = recent(series, f"rollout/{env}/faults") or 0
        truncated = recent(series, f"rollout/{env}/truncated") or 0
        if played and faults / played > 0.05:
            yield _at(
                run,
                "warning",
                f"{env}: {faults / played:.0%} of its trajectories of the last steps ended in a fault that "
                "is not the policy's.",
                f"rollout/{env}/faults",
                _last_above(run, f"rollout/{env}/faults", 0.0),
                [("fault", "with")],
            )
        if truncated > 0.3:
            yield _at(
                run,
                "warning",
                f"{env}: {truncated:.0%} of its episodes of the last steps were cut off at a "
                "limit of turns or tokens.",
                f"rollout/{env}/truncated",
                _last_above(run, f"rollout/{env}/truncated", 0.0),
                [("order", "tokens")],
            )
    for env in environments(series, "rollout", "reward"):
        values = series[f"rollout/{env}/reward"].values
        if len(values) < 20:
            continue
        best = max(mean(values[i : i + 10]) for i in range(len(values) - 9))
        if best - mean(values[-10:]) > 0.2:
            yield _at(
                run,
                "warning",
                f"{env}: the reward fell from {best:.2f} to {mean(values[-10:]):.2f} (means of ten steps).",
                f"rollout/{env}/reward",
                more=[("order", "-reward")],
            )


def _learning(run: RunData) -> Iterator[Alert]:
    """Alarms of learning, of each metric the last one."""
    last = {alarm.key: alarm for alarm in run.alarms}
    for key, alarm in last.items():
        before = sum(other.key == key for other in run.alarms) - 1
        more = f", the last of {before + 1} times" if before else ""
        yield _at(run, "warning", f"{alarm.text}{more}.", key, alarm.step)


def _learner(run: RunData) -> Iterator[Alert]:
    series = run.series
    total, waited = (recent(series, f"time/{name}_seconds") for name in ("total", "wait_for_batch"))
    if total and waited and waited / total > 0.5:
        yield Alert(
            "note",
            f"The learner waited for batches in {waited / total:.0%} of the last steps' time: rollouts are "
            "the slower side.",
            run.step,
            page="timeline",
        )
    if run.not_finite:
        key, steps = max(run.not_finite.items(), key=lambda one: one[1][-1])
        yield _at(run, "warning", _not_finite(run.not_finite), key, steps[-1])
    gap = recent(series, "parity/mean_abs_dlogp")
    if gap is not None and gap > 0.05:
        yield _at(
            run,
            "warning",
            f"Engine and learner differ by {gap:.2g} in log-prob per token on average; usual is below 0.05.",
            "parity/mean_abs_dlogp",
        )
    played, dropped = (series.get(f"selection/all/{n}/trajectories") for n in ("played", "dropped"))
    if played and dropped and played.last and dropped.last / played.last > 0.6:
        yield Alert(
            "note",
            f"{dropped.last / played.last:.0%} of what was played was not trained on: tasks that are always "
            "or never solved teach nothing.",
            dropped.steps[-1],
            (("outcome", "filtered:zero_variance"),),
            "trajectories",
        )


def _changes(run: RunData) -> Iterator[Alert]:
    for change in said_changes(run.changes):
        if change.fell:
            yield _at(run, "note", change.sentence, change.key, change.step)


def _not_finite(found: Mapping[str, Sequence[int]]) -> str:
    """The keys that were nan or infinite last come first."""
    keys = sorted(found, key=lambda key: (-found[key][-1], key))
    named = ", ".join(key[:80] for key in keys[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    steps = {step for key in keys for step in found[key]}
    when = (
        f"at step {max(steps)}" if len(steps) == 1 else f"at {len(steps)} steps, last {max(steps)}"
    )
    verb = "is" if len(keys) == 1 else "are"
    return f"{named}{more} {verb} nan or infinite {when}; the charts leave that out."


def _last_above(run: RunData, key: str, least: float) -> int | None:
    """The newest step at which a metric was above a value."""
    one = run.series[key]
    above = (step for step, value in zip(one.steps, one.values, strict=True) if value > least)
    return max(above, default=None)
