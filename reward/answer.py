"""Rewards for a final answer that is checked against the task's reference answer.

Refuses a reference that nothing could equal: the judge fails then, which is no reward of 0.
"""

import time
from collections.abc import Iterable
from decimal import Decimal
from typing import cast

from envs.env import Task
from reward.comparing import compare
from reward.mathematics import UnreadableReference, is_expression
from rollout.trajectory import Trajectory

CHECK_SECONDS = 10.0


def final_answer(trajectory: Trajectory) -> str:
    """The text of the last turn."""
    return trajectory.turns[-1].text.strip() if trajectory.turns else ""


def reference_answers(task: Task) -> list[str]:
    """The task's `answers`, any of which is right, or its one `answer`. Raises ValueError."""
    several = task.data.get("answers")
    if isinstance(several, list) and several:
        return [_written(one) for one in cast(list[object], several)]
    if "answer" not in task.data:
        raise ValueError(f"{task_name(task)} has no 'answer' to judge by")
    return [_written(task.data["answer"])]


def _written(answer: object) -> str:
    """An answer as a person would write it: 0.00001, and not 1e-05."""
    if isinstance(answer, float) and "e" in repr(answer):
        return format(Decimal(repr(answer)), "f")
    return str(answer).strip()


def task_name(task: Task) -> str:
    """Name of a task in a sentence."""
    return f"environment {task.env!r}, task {task.id}"


async def exact(task: Task, trajectory: Trajectory) -> dict[str, float]:
    """1 where the final answer is a reference answer, letter by letter."""
    return {"exact": float(final_answer(trajectory) in reference_answers(task))}


async def mathematics(task: Task, trajectory: Trajectory) -> dict[str, float]:
    """1 where the final answer and a reference are mathematically equal (`reward.mathematics`).

    Compared in processes of their own (`reward.comparing`). Raises ValueError for a reference that is not
    equal to itself.
    """
    for reference in reference_answers(task):
        try:
            if await compare(reference, final_answer(trajectory)):
                return {"mathematics": 1.0}
        except UnreadableReference as error:
            raise ValueError(_refused(task, reference, error)) from None
    return {"mathematics": 0.0}


async def check_references(tasks: Iterable[tuple[str, Task]]) -> None:
    """Raise ValueError for the first named task whose reference `mathematics` would refuse.

    Looks for `CHECK_SECONDS` at most; what is left is refused when it is judged.
    """
    end = time.monotonic() + CHECK_SECONDS
    for name, task in tasks:
        for reference in reference_answers(task):
            if time.monotonic() > end:
                return
            if not is_expression(reference):
                continue
            try:
                await compare(reference, reference)
            except UnreadableReference as error:
                raise ValueError(_refused(task, reference, error, name)) from None


def _refused(task: Task, reference: str, error: UnreadableReference, name: str = "") -> str:
    return (
        f"{name or task_name(task)}{_question(task)}: the reference answer {reference!r} cannot be judged by "
        f"`mathematics`: {error}; mend it, or use the judge `exact`"
    )


def _question(task: Task) -> str:
    """How the task's question begins, in brackets."""
    question = str(task.data.get("question", ""))
    begins = question if len(question) <= 60 else f"{question[:60]}…"
    return f" ({begins!r})" if question else ""
