"""Checks against a policy that answers anything, and an expert whose calls go wrong."""

from envs.env import Task
from envs.session import EnvFault
from rl.env_tools.check.runner import Broken, Moves, Runner, full, shown

# None of them is right, and some of them can be read as something.
ODD_ANSWERS = ("I do not know", "x", "-1", "[", '{"a": 1}', "1e999", "é漢🙂", " \n")


async def check_answers(runner: Runner, task: Task) -> None:
    """A wrong answer is no fault, and earns nothing in full."""
    for text in ODD_ANSWERS:
        try:
            rewards = (await runner.episode(task, "odd", text)).rewards
        except EnvFault as fault:
            runner.fault(
                fault, task, f"a policy answers anything, such as {text!r}: that is wrong, no error"
            )
            raise Broken from None
        if full(rewards):
            runner.fail(
                "idle",
                f"the answer {text!r} scores {rewards} on task {shown(task)}: let score() compare it with "
                "what the task wants",
            )
            return


async def check_slips(runner: Runner, tasks: list[Task]) -> None:
    """A cold start makes wrong calls in the expert's place; the expert goes on, whatever comes back."""
    hows: tuple[Moves, ...] = ("unknown", "slip")
    for task in tasks if runner.has_expert else ():
        for how in hows:
            try:
                await runner.episode(task, how)
            except EnvFault as fault:
                runner.fault(fault, task)
                raise Broken from None
