"""Held-out evaluation: every environment's held-out tasks, once each, at the training temperature."""

import asyncio
import itertools
from collections.abc import Callable

from envs.env import Task
from rl.config import EnvTable, RunConfig
from rl.loop.dispatcher import Dispatcher
from rl.samples.group import GroupReport, GroupSpec

# A small world repeats its tasks: look at so many times the wanted number to find different ones.
LOOK_AHEAD = 20


def heldout_tasks(table: EnvTable, count: int) -> list[Task]:
    """The first `count` different held-out tasks of an environment, the same in every run."""
    found: dict[str, Task] = {}
    stream = table.make().tasks("heldout", seed=0)
    for task in itertools.islice(stream, LOOK_AHEAD * count):
        found.setdefault(task.id, task)
        if len(found) == count:
            break
    return list(found.values())


async def evaluate(
    config: RunConfig, dispatcher: Dispatcher, when: str, progress: Callable[[int, int], None]
) -> tuple[list[GroupReport], int]:
    """Play the held-out tasks. Returns the reports and how many episodes were wanted.

    `progress(done, wanted)` is called after each episode. Lost groups have no report.
    """
    specs: list[GroupSpec] = []
    for table in config.env:
        for task in heldout_tasks(table, config.eval.tasks):
            id = f"eval-{when}-{len(specs)}"
            specs.append(GroupSpec(id, table.label, task, (f"{id}.0",), train=False))
    most = config.rollout.max_in_flight_groups * config.batch.group_size
    room = asyncio.Semaphore(most)
    own = {table.label: asyncio.Semaphore(table.concurrency or most) for table in config.env}
    done = 0

    async def play(spec: GroupSpec) -> GroupReport | None:
        nonlocal done
        async with own[spec.env], room:
            played = await dispatcher.play(spec)
        done += 1
        progress(done, len(specs))
        return played[0] if played else None

    played = await asyncio.gather(*(play(spec) for spec in specs))
    return [report for report in played if report is not None], len(specs)
