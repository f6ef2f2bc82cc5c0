"""The health of a run as plain data, from status.json: who answers, what is waited for."""

import time

from rl.dashboard.overview import Figure, written
from rl.dashboard.run_data import RunData
from rl.record.status import SILENT_SECONDS

# An actor that owes an answer for so long does not answer.
LATE_SECONDS = 10.0
_MOST_ROWS = 300
# States of an actor that is as it should be.
WELL = ("answers", "ended with the run")
# States of a run in which nothing is in flight, whatever the last status says.
OVER = ("finished", "failed", "interrupted", "ended")


def health_figures(run: RunData) -> list[Figure]:
    """The first line of the page."""
    status, state = run.status, run.state()
    if status is None:
        return [Figure("state", state, written(run))]
    rows = actor_rows(run)
    well = sum(row["state"] in WELL for row in rows)
    when = "" if state in ("running", "silent") else ", in its last status"
    flying = 0 if state in OVER else status.in_flight
    buffered = 0 if state in OVER else status.buffered
    return [
        Figure("state", state, status.stage[:80] if state == "running" else written(run)),
        Figure("learner", f"{status.step} / {status.steps}", status.learner[:200]),
        Figure("actors", f"{well} of {len(rows)}", f"answered{when}"),
        Figure("in flight", f"{flying:,}", f"trajectories{when}"),
        Figure("buffered", f"{buffered:,}", "trajectories that wait for the learner"),
        Figure("window", " ".join(map(str, status.window[:8])) or "-", "live versions"),
    ]


def actor_rows(run: RunData, now: float | None = None) -> list[dict[str, str]]:
    """Every actor with its heartbeat; those that do not answer come first."""
    if run.status is None:
        return []
    # Of a run that is over or hangs: as of what it said last.
    now = time.time() if now is None else now
    live = run.state(now) == "running"
    at = now if live else run.status.time
    rows = []
    over = run.state(now) in OVER
    for actor in run.status.actors[:_MOST_ROWS]:
        waits = 0.0 if actor.asked is None else at - actor.asked
        if over:
            # Whatever it owed when the run ended, it ended with the run.
            state = "ended with the run" if actor.seen is not None else "not heard of"
        elif actor.fault:
            state = f"failed: {actor.fault}"
        elif waits > LATE_SECONDS:
            state = f"no answer for {waits:.0f} s"
        else:
            state = "answers" if actor.seen is not None else "not heard of yet"
        serves = run.status.engines.get(actor.name)
        asleep = " (asleep)" if actor.name in run.status.asleep else ""
        rows.append(
            {
                "name": actor.name,
                "state": state[:300],
                "serves": "" if serves is None else f"version {serves}{asleep}",
                "pid": "" if actor.pid is None else str(actor.pid),
                "node": actor.node,
                "seen": "never" if actor.seen is None else f"{max(0.0, at - actor.seen):.0f} s",
            }
        )
    return sorted(rows, key=lambda row: (row["state"] in WELL, row["name"]))


def waiting_rows(run: RunData) -> list[dict[str, str]]:
    """Rows of the waiting-for table, the most suspicious trajectory first."""
    if run.status is None or run.state() in OVER:
        return []
    return [
        {
            "id": row.id,
            "env": row.env,
            "version": "" if row.version is None else str(row.version),
            "phase": row.phase,
            "at": row.at,
            "seconds": f"{row.seconds:.1f}",
            "p99": "" if row.p99 is None else f"{row.p99:.2f}",
            "times": "" if not row.p99 else f"{row.seconds / row.p99:.1f}",
            "left": f"{row.left:.0f}",
            "then": row.then,
        }
        for row in run.status.waiting
    ]


def phase_rows(run: RunData) -> list[dict[str, str]]:
    """Number of trajectories in each phase, per environment."""
    if run.status is None or run.state() in OVER:
        return []
    return [
        {
            "env": env,
            "all": f"{sum(phases.values()):,}",
            "phases": ", ".join(f"{phase} {n:,}" for phase, n in sorted(phases.items())),
        }
        for env, phases in sorted(run.status.counts.items())[:_MOST_ROWS]
    ]


def troubles(run: RunData, now: float | None = None) -> list[str]:
    """Sentences on everything that is not as it should be now."""
    now = time.time() if now is None else now
    if run.status is None or run.state(now) not in ("running", "silent"):
        return []
    found = []
    if (silent := now - run.status.time) > SILENT_SECONDS:
        found.append(
            f"The run's own loop wrote its status {silent:.0f} s ago; what stands here is as of then."
        )
    found += [
        f"{name} did not answer when it was asked what its episodes wait for."
        for name in run.status.silent
    ]
    found += [
        f"{row['name']}: {row['state']}."
        for row in actor_rows(run, now)
        if row["state"].startswith(("failed", "no answer"))
    ]
    return found
