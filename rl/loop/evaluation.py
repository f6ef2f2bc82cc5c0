"""Held-out evaluation: every environment's held-out tasks, once each, at the training temperature."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence

from envs.env import Task
from envs.text import told
from rl.config import EnvTable
from rl.loop.dispatcher import Played
from rl.loop.rollouts import Rollouts
from rl.loop.watch import Activity
from rl.nodes.deadline import while_watching
from rl.record.progress import EVALUATION_SECONDS, Progress
from rl.record.run_folder import RunFolder
from rl.record.wandb_sink import WandbSink
from rl.samples.group import GroupReport, GroupSpec
from rl.samples.metrics import pass_rates
from rl.tasks.streams import OutOfTasks

# A small world repeats its tasks: look at so many times the wanted number to find different ones.
LOOK_AHEAD = 20


def heldout_tasks(table: EnvTable, count: int) -> list[Task]:
    """Return the first `count` different held-out tasks of an environment, the same in every run.

    Raises OutOfTasks where the environment cannot make one."""
    found: dict[str, Task] = {}
    try:
        stream = table.make().tasks("heldout", seed=0)
        for task in itertools.islice(stream, LOOK_AHEAD * count):
            found.setdefault(task.id, task)
            if len(found) == count:
                break
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an author's code
        raise OutOfTasks(
            f"environment {table.label!r} cannot make a held-out task: {told(error)}"
        ) from error
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


class Evaluations:
    """Plays a run's evaluations on its rollouts, and writes down their pass rates."""

    def __init__(
        self,
        tables: Sequence[EnvTable],
        rollouts: Rollouts,
        activity: Activity,
        folder: RunFolder,
        progress: Progress,
        sink: WandbSink,
        *,
        tasks: int,
        most: int,
        part: str,
    ) -> None:
        """tasks: of each environment. most: episodes at once. part: keeps the ids of a run that goes on apart
        from those of its earlier part."""
        self.tables = tables
        self.rollouts = rollouts
        self.book = rollouts.book
        self.activity = activity
        self.folder = folder
        self.progress = progress
        self.sink = sink
        self.tasks = tasks
        self.most = most
        self.part = part

    async def run(self, when: str, watching: asyncio.Task[None]) -> None:
        """Play the held-out tasks once each. Raises what `watching` does, if that comes first."""
        stats, step = self.book.stats, self.book.learner_version
        self.progress.stage(f"evaluation {when} training", usual=EVALUATION_SECONDS)
        start = time.time()
        playing = evaluate(
            self.tables,
            self.rollouts.play,
            f"{when}{self.part}",
            self.progress.episodes,
            tasks=self.tasks,
            most=self.most,
        )
        with self.activity.busy("waits for the evaluation"):
            reports, wanted = await while_watching(playing, watching)
        for report in reports:
            self.folder.index(report, f"heldout-{when}")
        judged = sum(m.judged for r in reports for m in r.members)
        rates = pass_rates(reports)
        stats.evaluated(when, rates, wanted - judged)
        values = {f"eval/{env}/pass_rate": rate for env, rate in rates.items()}
        self.folder.metrics(step, values)
        self.sink.look()
        self.folder.event("run", f"evaluation {when}", start, time.time())
        said = "  ".join(f"{env} {rate:.2f}" for env, rate in rates.items())
        self.progress.note(f"held-out pass rate {when} training: {said}")
