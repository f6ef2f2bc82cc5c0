"""Held-out evaluation: every environment's held-out tasks, once each, at the training temperature."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence

from envs.env import Task
from rl.config import EnvTable
from rl.loop.dispatcher import Played
from rl.samples.group import GroupReport, GroupSpec

# A small world repeats its tasks: look at so many times the wanted number to find different ones.
LOOK_AHEAD = 20


def heldout_tasks(table: EnvTable, count: int) -> list[Task]:
    """Return the first `count` different held-out tasks of an environment, the same in every run."""
    found: dict[str, Task] = {}
    stream = table.make().tasks("heldout", seed=0)
    for task in itertools.islice(stream, LOOK_AHEAD * count):
        found.setdefault(task.id, task)
        if len(found) == count:
            break
    return list(found.values())


async def evaluate(
    tables: Sequence[EnvTable],
    play: Callable[[GroupSpec], Awaitable[Played | None]],
    when: str,
    progress: Callable[[int, int], None],
    *,
    tasks: int,
    most: int,
) -> tuple[list[GroupReport], int]:
    """Play up to `tasks` held-out tasks of each environment. Returns the reports, and how many were wanted.

    `play(spec)` plays one; a group that it loses has no report. `progress(done, wanted)` is called after each
    episode. when: part of the ids. most: episodes at once.
    """
    specs: list[GroupSpec] = []
    for table in tables:
        for task in heldout_tasks(table, tasks):
            id = f"eval-{when}-{len(specs)}"
            specs.append(GroupSpec(id, table.label, task, (f"{id}.0",), train=False))
    room = asyncio.Semaphore(most)
    own = {table.label: asyncio.Semaphore(table.concurrency or most) for table in tables}
    done = 0

    async def play_one(spec: GroupSpec) -> GroupReport | None:
        nonlocal done
        async with own[spec.env], room:
            played = await play(spec)
        done += 1
        progress(done, len(specs))
        return played.report if played else None

    reports = await asyncio.gather(*map(play_one, specs))
    return [report for report in reports if report is not None], len(specs)
