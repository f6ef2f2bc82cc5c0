"""Alerts: sentences on what is wrong or remarkable with a run, a pure function of its folder.

Each alert says what was seen, with its figure, at which step, and leads to the page where one looks next.
Thresholds are those from which on a person would want to know; none of them stops anything. What is about the
policy's learning is in `rl.dashboard.learning_alerts`.
"""

import time
from collections.abc import Iterator

from rl.dashboard.alert import Alert
from rl.dashboard.drill_down import step_at
from rl.dashboard.learning_alerts import learning_alerts
from rl.dashboard.run_data import RunData
from rl.record.status import sentence


def alerts(run: RunData, now: float | None = None) -> list[Alert]:
    """The alerts of a run, errors first."""
    now = time.time() if now is None else now
    found = [
        *_state(run, now),
        *learning_alerts(run),
        *_stops(run),
        *_hacked(run),
        *_files(run),
    ]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda alert: order.index(alert.level))


def _state(run: RunData, now: float) -> Iterator[Alert]:
    state = run.state(now)
    if state == "failed":
        yield Alert(
            "error",
            "The run failed. Its output and the files in logs/ say why.",
            run.step,
            page="health",
        )
    if state == "interrupted":
        yield Alert(
            "warning",
            f"The run was interrupted after step {run.step} of {run.steps}.",
            run.step,
            page="health",
        )
    if state == "silent":
        yield Alert(
            "error",
            f"Nothing was written for {_ago(now - run.written)}, and there is no summary: the run was "
            f"killed, or it hangs. `dorado status` with this run folder tells which.",
            run.step,
            page="health",
        )
    for what in run.status.lost if run.status is not None else ():
        yield Alert("warning", f"{what[:300]}.", page="timeline")
    for model in run.status.models if run.status is not None else ():
        if model.moved:
            yield Alert("warning", f"Model {model.name}: {model.moved[:300]}.", page="health")
    if state in ("starting", "finished", "failed", "interrupted", "ended") or run.status is None:
        return
    for name in run.status.silent:
        yield Alert("error", f"{name} does not answer; see logs/{name}.log.", page="health")
    for row in run.status.waiting[:1]:
        if row.p99 is not None and row.seconds > 3 * row.p99:
            yield Alert("warning", f"Waits unusually long: {sentence(row)}.", page="health")


def _stops(run: RunData) -> Iterator[Alert]:
    """The last sentences of the run's stop rules: warnings of the guard, and why training ended early."""
    told = [s for s in run.spans if s.lane == "supervision" and s.name in ("guard", "stop")]
    for span in told[-3:]:
        yield Alert("warning", f"{span.what}.", step_at(run, span.end), page="timeline")


def _hacked(run: RunData) -> Iterator[Alert]:
    """Rewards that are earned without what they are held against, each the last time that it was told."""
    told = [s for s in run.spans if s.lane == "supervision" and s.name.startswith("hacking ")]
    for span in {span.name: span for span in told}.values():
        text, query = span.what.removeprefix("warning: "), (("ids", ",".join(span.trajectories)),)
        yield Alert("warning", f"{text}.", step_at(run, span.end), query, "trajectories")


def _files(run: RunData) -> Iterator[Alert]:
    for problem in run.problems:
        yield Alert("warning", problem[:300])


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
