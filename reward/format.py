"""Rewards for how a trajectory is written, whatever it achieved."""

from envs.env import Task
from rollout.trajectory import Trajectory


async def well_formed(task: Task, trajectory: Trajectory) -> dict[str, float]:
    """Share of the turns that hold no malformed and no refused tool call (LongCat's format reward)."""
    turns = trajectory.turns
    good = sum(not turn.malformed and turn.bad_calls == 0 for turn in turns)
    return {"well_formed": good / len(turns) if turns else 0.0}
