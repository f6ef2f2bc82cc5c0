"""Turns a trajectory's evidence and its judges' findings into one reward."""

import asyncio
import math
from collections.abc import Mapping, Sequence

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
        name = getattr(judge, "__name__", str(judge))
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                found = await judge(trajectory.task, trajectory)
            if not all(math.isfinite(value) for value in found.values()):
                raise ValueError(f"not finite: {found}")
            rewards |= found
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                raise JudgeFault(f"judge {name}: no answer within {seconds:g} s") from None
            raise JudgeFault(f"judge {name}: {type(error).__name__}: {error}") from error
    total = sum(value * weights.get(name, 1.0) for name, value in rewards.items())
    return ScoredTrajectory(trajectory, rewards, total)
