"""Alerts: sentences on what is wrong or remarkable with a run, a pure function of its folder.

Each alert says what was seen, with its figure, and what to look at. Thresholds are those from which on a
person would want to know; none of them stops anything.
"""

import time
from bisect import bisect_left
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
    """One alert, such as level "warning", text "calculator: 12 % of its trajectories end in a fault; …"."""

    level: Level
    text: str


def alerts(run: RunData, now: float | None = None) -> list[Alert]:
    """The alerts of a run, errors first."""
    now = time.time() if now is None else now
    found = [
        *_state(run, now),
        *_rollout(run),
        *_rewards(run),
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


def _rewards(run: RunData) -> Iterator[Alert]:
    """Rewards that rise though the tasks are solved no more often: perhaps a way around the task."""
    for env in environments(run.series, "reward", "solved"):
        total, solved = (
            run.series.get(key) for key in (f"rollout/{env}/reward", f"reward/{env}/solved")
        )
        if total is None or solved is None or total.steps != solved.steps or len(total.steps) < 20:
            continue
        start = _hacked_since(total.values, solved.values)
        if start is None:
            continue
        before, after = (mean(total.values[i:][:10]) for i in (start, len(total.steps) - 10))
        yield Alert(
            "warning",
            f"{env}: since step {total.steps[start]} the reward rose from {before:.2f} to {after:.2f}, while "
            f"solved went from {mean(solved.values[start:][:10]):.2f} to {mean(solved.values[-10:]):.2f}"
            f"{_most_risen(run, env, total.steps[start])}: look whether the policy earns it without the "
            "task.",
        )


def _hacked_since(total: Sequence[float], solved: Sequence[float]) -> int | None:
    """Where ten steps begin since whose mean the total rose by 0.15 or more, and solved by less than a fifth
    of that; the one of the largest rise."""
    found: tuple[float, int] | None = None
    for i in range(len(total) - 19):
        up, done = (mean(one[-10:]) - mean(one[i : i + 10]) for one in (total, solved))
        if up >= 0.15 and done < up / 5 and (found is None or up > found[0]):
            found = up, i
    return None if found is None else found[1]


def _most_risen(run: RunData, env: str, since: int) -> str:
    """The named reward that rose most since a step, said; "" where none did."""
    best, said = 0.0, ""
    for key, one in run.series.items():
        if not key.startswith(f"reward/{env}/") or len(one.steps) < 20:
            continue
        start = min(bisect_left(one.steps, since), len(one.steps) - 10)
        before, after = mean(one.values[start:][:10]), mean(one.values[-10:])
        if after - before > best:
            name = key.removeprefix(f"reward/{env}/")[:60]
            best, said = after - before, f"; {name} rose most, from {before:.2f} to {after:.2f}"
    return said


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
