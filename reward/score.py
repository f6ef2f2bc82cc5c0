"""Turns a trajectory's evidence and its judges' findings into one reward."""

import asyncio
import math
from collections.abc import Mapping, Sequence

from envs.handover import named_rewards
from envs.text import shown, told
from reward.deadline import judging
from reward.registry import Judge
from rollout.trajectory import ScoredTrajectory, Trajectory


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
    for judge in judges:
        rewards |= await _findings(judge, trajectory, seconds)
    if not rewards:
        raise JudgeFault(
            f"environment {trajectory.env!r} gives no reward of its own, and no judge does: name one "
            '(judges = ["exact"])'
        )
    return ScoredTrajectory(trajectory, rewards, _total(rewards, weights))


async def _findings(judge: Judge, trajectory: Trajectory, seconds: float) -> dict[str, float]:
    """A judge's named rewards as finite floats. Raises JudgeFault, whatever the judge does."""
    name = getattr(judge, "__name__", type(judge).__name__)
    deadline, task = asyncio.timeout(seconds), asyncio.current_task()
    assert task is not None, "asyncio.timeout needs a task as well"
    cancels = task.cancelling()
    try:
        async with deadline:
            with judging(deadline):
                found = await judge(trajectory.task, trajectory)
            return named_rewards(found, "it")
    except asyncio.CancelledError as error:
        if task.cancelling() > cancels:
            raise
        # Nobody asked: what it waited for was cancelled.
        raise JudgeFault(f"judge {name}: it raised CancelledError") from error
    except GeneratorExit:  # nobody is left to answer
        raise
    except BaseException as error:  # SystemExit, say, would end who asked
        if isinstance(error, TimeoutError) and deadline.expired():
            raise JudgeFault(f"judge {name}: no answer within {seconds:g} s") from None
        raise JudgeFault(f"judge {name}: {told(error)}") from error


def _total(rewards: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum, the same in whatever order the rewards were named. Raises JudgeFault."""
    try:
        total = math.fsum(value * weights.get(name, 1.0) for name, value in rewards.items())
    except (OverflowError, ValueError):  # infinite on the way
        total = math.inf
    if not math.isfinite(total):
        raise JudgeFault(f"the weighted sum of the rewards {shown(rewards)} is not finite")
    return total
