"""Alerts: sentences on what is wrong or remarkable with a run, a pure function of its folder.

Each alert says what was seen, with its figure, and what to look at. Thresholds are those from which on a
person would want to know; none of them stops anything.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rl.dashboard.changes import fall_sentences
from rl.dashboard.run_data import RunData
from rl.dashboard.series import environments, mean, recent
from rl.record.status import sentence

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Alert:
    """One alert, such as level "warning", text "calculator: 12 % of its trajectories end in a fault; …".

    step: at which it was; None where it is of no one step."""

    level: Level
    text: str
    step: int | None = None


def alerts(run: RunData, now: float | None = None) -> list[Alert]:
    """The alerts of a run, errors first."""
    now = time.time() if now is None else now
    found = [
        *_state(run, now),
        *_rollout(run),
        *_learning(run),
        *_learner(run),
        *_changes(run),
        *_stops(run),
        *_files(run),
    ]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda alert: order.index(alert.level))


def _state(run: RunData, now: float) -> Iterator[Alert]:
    state = run.state(now)
    if state == "failed":
        yield Alert("error", "The run failed. Its output and the files in logs/ say why.")
    if state == "interrupted":
        yield Alert("warning", f"The run was interrupted after step {run.step} of {run.steps}.")
    if state == "silent":
        yield Alert(
            "error",
            f"Nothing was written for {_ago(now - run.written)}, and there is no summary: the run was "
            f"killed, or it hangs. `dorado status` with this run folder tells which.",
        )
    for what in run.status.lost if run.status is not None else ():
        yield Alert("warning", f"{what[:300]}.")
    if state in ("starting", "finished", "failed", "interrupted", "ended") or run.status is None:
        return
    for name in run.status.silent:
        yield Alert("error", f"{name} does not answer; see logs/{name}.log.")
    for row in run.status.waiting[:1]:
        if row.p99 is not None and row.seconds > 3 * row.p99:
            yield Alert("warning", f"Waits unusually long: {sentence(row)}.")


def _rollout(run: RunData) -> Iterator[Alert]:
    series = run.series
    for env in environments(series, "env", "breaker"):
        if series[f"env/{env}/breaker"].last > 0:
            yield Alert("error", f"{env}: its breaker is open, so it gets no new episodes.")
    for env in environments(series, "rollout", "trajectories"):
        played = recent(series, f"rollout/{env}/trajectories") or 0
        faults = recent(series, f"rollout/{env}/faults") or 0
        truncated = recent(series, f"rollout/{env}/truncated") or 0
        if played and faults / played > 0.05:
            yield Alert(
                "warning",
                f"{env}: {faults / played:.0%} of its trajectories of the last steps ended in a fault that "
                "is not the policy's.",
            )
        if truncated > 0.3:
            yield Alert(
                "warning",
                f"{env}: {truncated:.0%} of its episodes of the last steps were cut off at a "
                "limit of turns or tokens.",
            )
    for env in environments(series, "rollout", "reward"):
        values = series[f"rollout/{env}/reward"].values
        if len(values) < 20:
            continue
        best = max(mean(values[i : i + 10]) for i in range(len(values) - 9))
        if best - mean(values[-10:]) > 0.2:
            yield Alert(
                "warning",
                f"{env}: the reward fell from {best:.2f} to {mean(values[-10:]):.2f} (means of ten steps).",
            )


def _learning(run: RunData) -> Iterator[Alert]:
    """Alarms of learning, of each metric the last one."""
    last = {alarm.key: alarm for alarm in run.alarms}
    for key, alarm in last.items():
        before = sum(other.key == key for other in run.alarms) - 1
        more = f", the last of {before + 1} times" if before else ""
        yield Alert("warning", f"{alarm.text}{more}.", alarm.step)


def _learner(run: RunData) -> Iterator[Alert]:
    series = run.series
    total, waited = (recent(series, f"time/{name}_seconds") for name in ("total", "wait_for_batch"))
    if total and waited and waited / total > 0.5:
        yield Alert(
            "note",
            f"The learner waited for batches in {waited / total:.0%} of the last steps' time: rollouts are "
            "the slower side.",
        )
    if run.not_finite:
        yield Alert("warning", _not_finite(run.not_finite))
    gap = recent(series, "parity/mean_abs_dlogp")
    if gap is not None and gap > 0.05:
        yield Alert(
            "warning",
            f"Engine and learner differ by {gap:.2g} in log-prob per token on average; usual is below 0.05.",
        )
    played, dropped = (series.get(f"selection/all/{n}/trajectories") for n in ("played", "dropped"))
    if played and dropped and played.last and dropped.last / played.last > 0.6:
        yield Alert(
            "note",
            f"{dropped.last / played.last:.0%} of what was played was not trained on: tasks that are always "
            "or never solved teach nothing.",
        )


def _stops(run: RunData) -> Iterator[Alert]:
    """The last sentences of the run's stop rules: warnings of the guard, and why training ended early."""
    told = [s.what for s in run.spans if s.lane == "supervision" and s.name in ("guard", "stop")]
    for what in told[-3:]:
        yield Alert("warning", f"{what}.")


def _changes(run: RunData) -> Iterator[Alert]:
    for said in fall_sentences(run.changes):
        yield Alert("note", said)


def _files(run: RunData) -> Iterator[Alert]:
    for problem in run.problems:
        yield Alert("warning", problem[:300])


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


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
