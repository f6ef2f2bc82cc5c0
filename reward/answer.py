"""Rewards for a final answer that is checked against the task's reference answer."""

from envs.env import Task
from rollout.trajectory import Trajectory


def final_answer(trajectory: Trajectory) -> str:
    """The text of the last turn."""
    return trajectory.turns[-1].text.strip() if trajectory.turns else ""


async def exact(task: Task, trajectory: Trajectory) -> dict[str, float]:
    """1 where the final answer is the reference answer, letter by letter."""
    return {"exact": float(final_answer(trajectory) == str(task.data["answer"]).strip())}


async def mathematics(task: Task, trajectory: Trajectory) -> dict[str, float]:
    """1 where the final answer and the reference are mathematically equal (the library math-verify)."""
    from math_verify import parse, verify

    reference = parse(f"${task.data['answer']}$")
    answer = parse(final_answer(trajectory))
    return {"mathematics": float(verify(reference, answer))}
