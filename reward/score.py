"""Turns a trajectory's evidence and its judges' findings into one reward."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import cast

from envs.containment import contain_exits
from envs.dataset import ROW_JUDGES
from envs.env import Task
from envs.handover import named_rewards
from envs.text import shown, told
from reward.deadline import judging
from reward.registry import Judge
from rollout.trajectory import ScoredTrajectory, Trajectory

# For a judge to end in that is over its deadline.
LAST_SECONDS = 1.0


class JudgeFault(Exception):
    """A judge failed or did not answer: the trajectory is not scored, and not scored 0."""


async def score(
    trajectory: Trajectory,
    judges: Sequence[Judge],
    weights: Mapping[str, float],
    *,
    seconds: float,
) -> ScoredTrajectory:
    """Named rewards (the environment's and the judges') and their sum under `weights` (default 1 each).

    Raises JudgeFault. A trajectory that a fault ended has no rewards and the reward 0, which nothing reads.
    """
    if not trajectory.judged:
        return ScoredTrajectory(trajectory, {}, 0.0)
    rewards = dict(trajectory.env_rewards)
    for judge in of_row(trajectory.task, judges):
        found = await _findings(judge, trajectory, seconds)
        if twice := sorted(found.keys() & rewards.keys()):
            raise JudgeFault(
                f"judge {_name(judge)}: its reward {twice[0]!r} is given already, by the environment or "
                "another judge: give it another name"
            )
        rewards |= found
    if not rewards:
        raise JudgeFault(
            f"environment {trajectory.env!r} gives no reward of its own, and no judge does: name one "
            '(judges = ["exact"])'
        )
    earned: tuple[float, ...] = ()
    if any(turn.rewards for turn in trajectory.turns):
        earned = tuple(_total(turn.rewards, weights) for turn in trajectory.turns)
    return ScoredTrajectory(trajectory, rewards, _total(rewards, weights), earned)


def of_row(task: Task, judges: Sequence[Judge]) -> Sequence[Judge]:
    """Return the judges that a row of a data set names, by their functions' names; all where it names none.

    Raises JudgeFault for one that there is not.
    """
    named = task.data.get(ROW_JUDGES)
    if not isinstance(named, list):
        return judges
    known = {_name(judge): judge for judge in judges}
    for name in map(str, cast(list[object], named)):
        if name not in known:
            raise JudgeFault(
                f"the row of task {task.id} names the judge {name!r}, and the environment has "
                f"{', '.join(known) or 'none'} (judges)"
            )
    return [judge for name, judge in known.items() if name in named]


async def _findings(judge: Judge, trajectory: Trajectory, seconds: float) -> dict[str, float]:
    """A judge's named rewards as finite floats. Raises JudgeFault, whatever the judge does."""
    name, deadline = _name(judge), asyncio.timeout(seconds)

    async def ask() -> dict[str, float] | BaseException:
        try:
            async with deadline:
                with judging(deadline):
                    found = await judge(trajectory.task, trajectory)
                return named_rewards(found, "it")
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # SystemExit, say, would end who asked
            return error

    contain_exits()
    asking, late = asyncio.create_task(ask()), False
    try:
        # A judge that is cancelled at its deadline and will not end is left to itself.
        while not asking.done() and not late:
            expired = deadline.expired()
            await asyncio.wait({asking}, timeout=LAST_SECONDS)
            late = expired and not asking.done()
    finally:  # also where whoever asks is cancelled
        asking.cancel()
    if late or deadline.expired():
        raise JudgeFault(f"judge {name}: no answer within {seconds:g} s")
    if asking.cancelled():
        raise JudgeFault(f"judge {name}: it raised CancelledError")
    found = asking.result()
    if isinstance(found, BaseException):
        raise JudgeFault(f"judge {name}: {told(found)}") from found
    return found


def _name(judge: Judge) -> str:
    return getattr(judge, "__name__", type(judge).__name__)


def _total(rewards: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum, the same in whatever order the rewards were named. Raises JudgeFault."""
    try:
        total = math.fsum(value * weights.get(name, 1.0) for name, value in rewards.items())
    except (OverflowError, ValueError):  # infinite on the way
        total = math.inf
    if not math.isfinite(total):
        raise JudgeFault(f"the weighted sum of the rewards {shown(rewards)} is not finite")
    return total
