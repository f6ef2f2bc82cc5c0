"""Leads from a point of a chart to the trajectories behind it: the query of the list for a metric and a step.

What the rollouts wrote (`rollout/`, `reward/`) was played while the step went on; what the learner computed
is of the trajectories that the step trained on; what an evaluation found is of its own.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from rl.dashboard.environments import names
from rl.dashboard.run_data import RunData
from rl.dashboard.trajectory_filter import TrajectoryFilter
from rl.dashboard.trajectory_index import says_what_it_trained_on

Query = list[tuple[str, str]]
PLAYED, TRAINED = "during", "step"
_ROLLOUTS = ("rollout", "reward", "judge", "hacking", "env", "mix", "selection")


def drill_down(run: RunData, key: str, step: float) -> Query:
    """Parameters of the list of trajectories for a metric's value at a step; [] where nothing leads on."""
    kind, _, rest = key.partition("/")
    env = rest.rpartition("/")[0]
    if kind == "eval":
        steps = [row.version + row.lag for row in run.evaluations]
        query = evaluation_query(run, nearest(steps, step))
        return query + ([("env", env)] if query and env else [])
    which = PLAYED if kind in _ROLLOUTS else TRAINED
    query = [(which, str(round(step)))]
    if kind in ("rollout", "reward", "learn") and env and env != "all":
        query.append(("env", env))
    return query


def evaluation_query(run: RunData, index: int | None) -> Query:
    """Parameters of the list for an evaluation, counted from 0."""
    if index is None or index >= len(run.evaluations):
        return []
    return [("split", run.evaluations[index].split)]


def nearest(values: Sequence[float], wanted: float) -> int | None:
    """The place of the value that is nearest; None of none."""
    return min(range(len(values)), key=lambda at: abs(values[at] - wanted), default=None)


def played_during(run: RunData, step: int) -> tuple[float, float] | None:
    """Unix seconds between which what a step's line counts as played has finished; None: not known."""
    one = run.series.get("time/total_seconds")
    if one is None:
        return None
    at = bisect_left(one.steps, step)
    if at == len(one.steps) or one.steps[at] != step:
        return None
    begin = one.times[at - 1] if at else one.times[at] - max(one.values[at], 0.0)
    return begin, one.times[at]


def behind_bar(run: RunData, lane: str, text: str, start: float) -> Query:
    """The query of the trajectories behind a bar, whose text begins with its lane and name; start: of the bar
    (unix seconds)."""
    name = text.removeprefix(f"{lane}: ").split("\n", 1)[0]
    kind, _, rest = name.partition(" ")
    number = re.match(r"\d{1,9}", rest)
    if lane == "run" and kind == "evaluation":
        return [("split", f"heldout-{rest.split()[0]}" if rest else "heldout-before")]
    if lane in ("learner", "run") and kind == "step" and number:
        return [("step", number.group())]
    if kind in ("version", "load") and (found := re.search(r"\d{1,9}", rest)):
        return [("version", found.group())]
    step = step_at(run, start)
    if step is None:
        return []
    env = [("env", lane)] if lane in names(run) else []
    return [("during", str(step)), *env]


def in_time(run: RunData, asked: TrajectoryFilter) -> TrajectoryFilter:
    """The filter with the seconds that it stands for, where it asks for the time of a step. Reads the run.

    Raises sqlite3.Error where the index cannot be read now.
    """
    if asked.during is None and asked.step is None:
        return replace(asked, span=None)
    if asked.during is None and says_what_it_trained_on(run.folder):
        return replace(asked, span=None)
    run.refresh()
    step = asked.step if asked.during is None else asked.during
    return replace(asked, span=played_during(run, step or 0) or (0.0, 0.0))


def step_at(run: RunData, moment: float) -> int | None:
    """The step whose line was the first to be written after a moment (unix seconds); None: none was."""
    one = run.series.get("time/total_seconds")
    if one is None:
        return None
    at = bisect_left(one.times, moment)
    return one.steps[at] if at < len(one.steps) else one.steps[-1]
