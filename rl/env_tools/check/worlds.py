"""Plays tasks for a check, and holds what they are worth and how they differ to what an author promises:
the expert scores in full, different tasks are different worlds, and every difficulty can be played.
"""

import asyncio
import itertools
import json
import traceback
from collections.abc import Iterable
from typing import cast

from envs.env import Env, Split, Task
from envs.message import JsonObject
from envs.registry import BadSettings, made, settings_of
from envs.text import shown as shown_value
from envs.text import told
from rl.env_tools.check.runner import Broken, Moves, Runner, full, shown
from rl.env_tools.check.shared_state import SharedState
from rl.env_tools.check.transcript import parting

Episodes = JsonObject
# Tasks that are played of each difficulty but the one of the settings.
OF_A_LEVEL = 2


def drawn_of(pattern: Env, split: Split, count: int) -> list[Task]:
    """The first tasks of a split. Raises TypeError for what is none, and what the author's code raises."""
    found = cast(object, pattern.tasks(split, 0))
    if not isinstance(found, Iterable):
        raise TypeError(f"it has to yield tasks, not return {shown_value(found)}")
    tasks = list(itertools.islice(cast(Iterable[object], found), count))
    for one in tasks:
        if not isinstance(one, Task):
            raise TypeError(f"it has to yield Task(self.name, data), not {shown_value(one)}")
    return cast(list[Task], tasks)


async def play_all(
    runner: Runner, tasks: list[Task], shared: SharedState | None = None
) -> Episodes:
    """Play every task by the expert and by a policy that says nothing; `shared` looks after each."""
    moves: list[Moves] = ["expert", "empty"] if runner.has_expert else ["empty"]
    episodes: Episodes = {}
    for index, task in enumerate(tasks):
        for how in moves:
            episodes[f"{index}/{how}"] = (await runner.episode(task, how)).as_json()
            if shared is not None:
                shared.look()
    return episodes


async def parting_at_once(runner: Runner, tasks: list[Task], episodes: Episodes) -> str:
    """Where two experts' episodes, act by act in turn, part from what each was alone; "" where they do not.

    Raises Broken.
    """
    other = next((i for i, task in enumerate(tasks) if task.id != tasks[0].id), 0)
    if not (runner.has_expert and other):
        return ""
    runner.where = "with a second episode at its side, "
    played = await asyncio.gather(
        *(runner.episode(tasks[i], "expert") for i in (0, other)), return_exceptions=True
    )
    runner.where = ""
    for index, episode in zip((0, other), played, strict=True):
        if isinstance(episode, BaseException):
            raise episode
        key = f"{index}/expert"
        found = parting(
            {"tasks": {}, "episodes": {key: episodes[key]}},
            {"tasks": {}, "episodes": {key: episode.as_json()}},
        )
        if found is not None:
            return str(found)
    return ""


def hold_to_rewards(runner: Runner, episodes: Episodes, tasks: list[Task]) -> None:
    """The expert scores in full, and a policy that says nothing does not."""
    for key, episode in episodes.items():
        rewards, task = episode["rewards"], tasks[int(key.partition("/")[0])]
        if key.endswith("/expert") and rewards and not full(rewards):
            runner.fail(
                "expert",
                f"the expert scores {rewards} on task {shown(task)}: mend expert() or score(); full is "
                "`solved` of 1, or 1 in total where there is no `solved`",
            )
        if key.endswith("/empty") and full(rewards):
            runner.fail(
                "idle",
                f"an answer without a word scores {rewards} on task {shown(task)}: let score() ask for "
                "what the task wants",
            )


def check_worlds(runner: Runner, tasks: list[Task], episodes: Episodes) -> None:
    """Different tasks differ in something that the policy can see."""
    different = list({task.id: task for task in tasks}.values())
    if len(different) < 2 or (runner.has_tools and not runner.has_expert):
        return
    how = "expert" if runner.has_expert else "empty"
    seen = {
        json.dumps([episode["opening"], [m for m in episode["said"] if m["role"] != "assistant"]])
        for key, episode in episodes.items()
        if key.endswith(how)
    }
    if len(seen) == 1:
        runner.fail(
            "tasks",
            f"{len(different)} different tasks, such as {shown(different[0])} and {shown(different[1])}, "
            "look the same to the policy: the same opening, and the same answers to the expert's calls; let "
            "reset() build its world of task.data, and say what the task asks for",
        )


async def check_levels(runner: Runner) -> None:
    """Every difficulty can be drawn and played, where the settings choose none."""
    count, chosen = runner.env_class.difficulties, runner.spec.config
    own = getattr(runner.config, "difficulty", None)
    for level in range(1, count + 1) if "difficulty" not in chosen else ():
        if level != own:
            runner.where = f"at difficulty {level}, "
            await _check_level(runner, level)
    runner.where = ""


async def _check_level(runner: Runner, level: int) -> None:
    label = f"tasks('train', seed=0) at difficulty {level}"
    runner.doing(label)
    try:
        values = {**runner.spec.config, "difficulty": level}
        with runner.watch.during(label, measured=False):
            pattern = made(runner.env_class, settings_of(runner.env_class, values))
            tasks = drawn_of(pattern, "train", OF_A_LEVEL)
    except BadSettings as error:
        runner.fail(
            "tasks",
            f"of the {runner.env_class.difficulties} that `difficulties` says there are, the settings are "
            f"refused: {error}",
        )
        return
    except Exception as error:  # an author's code
        runner.fail("tasks", f"tasks('train', seed=0): {told(error)}", traceback.format_exc())
        raise Broken from None
    for task in tasks:
        if task.data.get("difficulty", 1) != level:
            runner.fail(
                "tasks",
                f"a task's data are {shown(task)}: let sample() write `difficulty` into them, and reset() "
                "read it there",
            )
            return
    hold_to_rewards(runner, await play_all(runner, tasks), tasks)
