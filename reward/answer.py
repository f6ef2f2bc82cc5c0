"""Rewards for a final answer that is checked against the task's reference answer."""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE

from envs.env import Task
from rollout.trajectory import Trajectory

# Exit codes of the comparing process; 0 and 1 are what Python itself ends with.
EQUAL, DIFFERENT = 10, 11


def final_answer(trajectory: Trajectory) -> str:
    """The text of the last turn."""
    return trajectory.turns[-1].text.strip() if trajectory.turns else ""


async def exact(task: Task, trajectory: Trajectory) -> dict[str, float]:
    """1 where the final answer is the reference answer, letter by letter."""
    return {"exact": float(final_answer(trajectory) == str(task.data["answer"]).strip())}


async def mathematics(task: Task, trajectory: Trajectory) -> dict[str, float]:
    """1 where the final answer and the reference are mathematically equal (the library math-verify).

    Runs in a process of its own: sympy can take for ever on what a policy writes, and the library's own
    time limit works in a main thread only. The caller's deadline cancels, which ends the process.
    """
    script = "from reward.answer import compare; import sys; sys.exit(compare())"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=PIPE, stdout=DEVNULL, stderr=PIPE
    )
    pair = json.dumps([str(task.data["answer"]), final_answer(trajectory)])
    try:
        _, errors = await process.communicate(pair.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in (EQUAL, DIFFERENT):
        raise RuntimeError(f"math-verify failed: {errors.decode().strip().splitlines()[-1:]}")
    return {"mathematics": float(process.returncode == EQUAL)}


def compare() -> int:
    """Exit code for the pair (reference, answer) on standard input."""
    from math_verify import parse, verify

    reference, answer = json.load(sys.stdin)
    return EQUAL if verify(parse(f"${reference}$"), parse(answer)) else DIFFERENT
