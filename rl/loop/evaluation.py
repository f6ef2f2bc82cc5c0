"""Held-out evaluation: every environment's held-out tasks, before and after training, and beside it.

Beside training an evaluation is a stream of its own: its groups come on top of those of training, up to a
share of them, so that neither waits for the other. A trajectory is of one version, but where weights change
under running requests (mode in_flight). An evaluation stays on the version that it began with until a newer
one waits for that one's place. Its line in evaluations.jsonl has the versions, and how far the learner was
ahead at its end. At most one goes on; one that is due meanwhile is skipped. Held-out groups are in no ledger.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from envs.env import Task
from envs.text import told
from rl.config import RunConfig
from rl.env_table import EnvTable
from rl.loop.dispatcher import Played
from rl.loop.rollouts import Rollouts
from rl.loop.watch import Activity
from rl.nodes.deadline import while_watching
from rl.record.best_checkpoint import BestCheckpoint, too_few_judged
from rl.record.evaluations import EvaluationRow, read_evaluations
from rl.record.progress import EVALUATION_SECONDS, Progress
from rl.record.run_folder import RunFolder
from rl.samples.group import GroupReport, GroupSpec
from rl.samples.heldout import Evaluation, evaluated
from rl.tasks.streams import OutOfTasks
from rl.trackers.trackers import Trackers
from rollout.window import admits

# A small world repeats its tasks: look at so many times the wanted number to find different ones.
LOOK_AHEAD = 20
# How the line that a run prints names its evaluations before and after training.
WHEN = {"before": "before training", "after": "after training"}


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


def heldout_sets(config: RunConfig) -> dict[str, list[Task]]:
    """The held-out tasks of each environment of a run, the same in every run. Raises OutOfTasks.

    `noise.level` of one that is evaluated only is that of its tasks."""
    sets = {table.label: heldout_tasks(table, config.eval.tasks) for table in config.all_envs}
    for table in config.eval.env:
        if table.noise is not None:
            level = table.noise.level
            sets[table.label] = [replace(task, noise=level) for task in sets[table.label]]
    return sets


def was_cut_off(rows: Sequence[EvaluationRow], step: int, every: int) -> bool:
    """True if an evaluation was due after a step, every so many, and none of it was written down."""
    due = bool(every) and step > 0 and step % every == 0
    return due and not any(step in (row.step, row.version) for row in rows)


async def evaluate(
    sets: Mapping[str, Sequence[Task]],
    play: Callable[[GroupSpec], Awaitable[Played | None]],
    when: str,
    progress: Callable[[int, int], None],
    *,
    most: int,
    samples: int = 1,
    instances: Mapping[str, int] | None = None,
) -> tuple[list[GroupReport], int]:
    """Play the tasks of each environment. Returns the reports, and how many were wanted.

    `play(spec)` plays one; a group that it loses has no report. `progress(done, wanted)`: called after each.
    when: part of the ids. most: episodes at once. samples: episodes of each task, which are a group.
    instances: of an environment at once, where that is bounded.
    """
    specs: list[GroupSpec] = []
    for env, tasks in sets.items():
        for task in tasks:
            id = f"eval-{when}-{len(specs)}"
            ids = tuple(f"{id}.{index}" for index in range(samples))
            specs.append(GroupSpec(id, env, task, ids, train=False))
    bounds = dict.fromkeys(sets, most) | dict(instances or {})
    room = asyncio.Semaphore(max(1, most // samples))
    own = {label: asyncio.Semaphore(max(1, bound // samples)) for label, bound in bounds.items()}
    done = 0

    async def play_one(spec: GroupSpec) -> GroupReport | None:
        nonlocal done
        async with own[spec.env], room:
            played = await play(spec)
        done += 1
        progress(done, len(specs))
        return played.report if played else None

    playing = [asyncio.create_task(play_one(spec)) for spec in specs]
    try:
        reports = await asyncio.gather(*playing)
    finally:
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
    return [report for report in reports if report is not None], len(specs)


class Evaluations:
    """Plays a run's evaluations on its rollouts, and writes down their results."""

    def __init__(
        self,
        config: RunConfig,
        rollouts: Rollouts,
        activity: Activity,
        folder: RunFolder,
        progress: Progress,
        trackers: Trackers,
        heard: Callable[[int, Mapping[str, float]], None],
        best: BestCheckpoint,
        *,
        part: str,
    ) -> None:
        """`heard(step, metrics)` is told of each result, and of the step after which it began. part: keeps
        the ids of a run that goes on apart from those of its earlier part."""
        self.config = config
        self.rollouts = rollouts
        self.book = rollouts.book
        self.fleet = rollouts.fleet
        self.activity = activity
        self.folder = folder
        self.progress = progress
        self.trackers = trackers
        self.heard = heard
        self.best = best
        self.part = part
        self.sets: dict[str, list[Task]] = {}
        # Instances at once, where that is bounded: when nothing else is played, and beside training.
        bounds = {t.label: t.concurrency for t in config.all_envs if t.concurrency is not None}
        self.instances = bounds
        trained = {table.label for table in config.env}
        self.instances_beside = {
            label: config.kept(bound) if label in trained else bound
            for label, bound in bounds.items()
        }
        # The step of the evaluation beside training that is to begin or goes on, and its version.
        self.step, self.version = 0, 0
        self.begun = time.monotonic()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._playing: asyncio.Task[tuple[list[GroupReport], int]] | None = None
        self._why_given_up = ""

    def prepare(self) -> None:
        """Make the tasks, which may take a while: nothing of a run moves meanwhile. Raises OutOfTasks."""
        self.sets = self.sets or heldout_sets(self.config)

    async def run(self, when: str, watching: asyncio.Task[None]) -> None:
        """Play the held-out tasks once each. Raises what `watching` does, if that comes first."""
        self.progress.stage(f"evaluation {when} training", usual=EVALUATION_SECONDS)
        start, step = time.time(), self.book.learner_version
        most = self.config.rollout.max_in_flight_groups * self.config.batch.group_size
        playing = self._evaluate(
            when, self.rollouts.play, self.progress.episodes, most=most, instances=self.instances
        )
        with self.activity.busy("waits for the evaluation"):
            reports, wanted = await while_watching(playing, watching)
        self._write(when, step, start, reports, wanted)

    def ask(self, step: int) -> bool:
        """Begin an evaluation beside training where one is due after this step. Returns whether it begins."""
        settings = self.config.eval
        late = bool(settings.seconds) and time.monotonic() - self.begun >= settings.seconds
        by_step = bool(settings.every) and step % settings.every == 0
        # The last step's is the one after training, where there is one.
        if not (late or by_step) or (step == self.config.steps and settings.after):
            return False
        if not self._idle.is_set():
            if by_step:
                self.progress.note(
                    f"the evaluation of step {step} is skipped: that of step {self.step} goes on"
                )
            return False
        self.step, self.begun = step, time.monotonic()
        self.best.hold(step)
        self._idle.clear()
        self._wanted.set()
        return True

    def ask_again(self, step: int) -> None:
        """Begin the evaluation of the step after which a run goes on, if its earlier part did not end it."""
        if was_cut_off(read_evaluations(self.folder.path), step, self.config.eval.every):
            self.ask(step)

    async def loop(self) -> None:
        """Evaluate beside training.

        consumes: steps after which one is due   produces: rows of evaluations.jsonl
        waits for: such a step                   unblocked by: the learner loop
        """
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._beside()
            finally:
                self.best.release()
            self._idle.set()

    async def ended(self) -> None:
        """Wait until none goes on."""
        with self.activity.busy("waits for the evaluation"):
            await self._idle.wait()

    def give_up(self, why: str = "the run was asked to end") -> None:
        """End the one that goes on, without a result."""
        if self._playing is not None:
            self._why_given_up = why
            self._playing.cancel()

    async def _beside(self) -> None:
        step, start = self.step, time.time()
        training = self.config.rollout.max_in_flight_groups * self.config.batch.group_size
        training = min(self.config.limits.target, training)
        moved = asyncio.Event()
        self.version = -1
        self._playing = playing = asyncio.create_task(
            self._evaluate(
                f"step_{step}",
                self._play_beside,
                lambda done, wanted: moved.set(),
                most=max(1, int(self.config.eval.share * training)),
                instances=self.instances_beside,
            )
        )
        try:
            await self._until_done(playing, moved)
            reports, wanted = await playing
        except asyncio.CancelledError:
            if not playing.cancelled() or not self._why_given_up:
                raise
            self.progress.note(f"the evaluation of step {step} is given up: {self._why_given_up}")
            return
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            self._playing, self._why_given_up = None, ""
        found = self._write(f"step_{step}", step, start, reports, wanted)
        if self.best.wanted and not self.best.written(found.version):
            self.progress.note(
                f"the evaluation of step {step} played from version {found.version} on, of which there is no "
                "checkpoint: it does not count for the best one"
            )

    async def _until_done(self, playing: asyncio.Task[object], moved: asyncio.Event) -> None:
        """Wait for the evaluation; give it up where no group of it ends for too long."""
        seconds = self.config.timeouts.stall_seconds
        while not playing.done():
            moved.clear()
            waiting = asyncio.create_task(moved.wait())
            try:
                await asyncio.wait(
                    {playing, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                waiting.cancel()
            if not moved.is_set() and not playing.done():
                self.give_up(f"no held-out episode ended for {seconds:g} s")
                await asyncio.wait({playing})

    async def _play_beside(self, spec: GroupSpec) -> Played | None:
        """Play a group on a version that stays until it has ended; anew where that one was given up."""
        while True:
            await self.rollouts.until(self._may_begin)
            played, evicted = await self.rollouts.play_beside(
                replace(spec, version=self._choose_version())
            )
            if not evicted:
                return played
            ids = tuple(f"{id}-again" for id in spec.ids)
            spec = replace(spec, id=f"{spec.id}-again", ids=ids)

    def _may_begin(self) -> bool:
        return self._candidate() is not None

    def _choose_version(self) -> int | None:
        """The version of a group that begins now; None where weights change under it."""
        found = self._candidate()
        assert found is not None, "nothing happens between `until` and this"
        self.version = found
        return None if self.config.rules.in_place else self.version

    def _candidate(self) -> int | None:
        """The evaluation's version as long as nothing waits for its place, else the newest. None: wait."""
        window = self.fleet.window
        first = window.versions[0] if window.pending is not None else None
        possible = [
            version
            for version in window.versions
            if version >= self.step and version != first and self.fleet.served(version)
        ]
        if not possible or not admits(window):
            return None
        return self.version if self.version in possible else possible[-1]

    async def _evaluate(
        self,
        when: str,
        play: Callable[[GroupSpec], Awaitable[Played | None]],
        progress: Callable[[int, int], None],
        *,
        most: int,
        instances: Mapping[str, int],
    ) -> tuple[list[GroupReport], int]:
        self.prepare()
        return await evaluate(
            self.sets,
            play,
            f"{when}{self.part}",
            progress,
            most=most,
            samples=self.config.eval.samples_per_task,
            instances=instances,
        )

    def _write(
        self, when: str, step: int, start: float, reports: Sequence[GroupReport], wanted: int
    ) -> Evaluation:
        """Write an evaluation down, and say its pass rates."""
        for report in reports:
            self.folder.index(report, f"heldout-{when}")
        now, samples = self.book.learner_version, self.config.eval.samples_per_task
        found = evaluated(reports, samples, learner_version=now, served=step)
        judged = sum(one.episodes for one in found.rates.values())
        faults = wanted * samples - judged
        row = {"step": step, "when": when, "tasks": wanted, "faults": faults, **found.row()}
        self.folder.evaluation(row)
        self.book.stats.evaluated(when, found, step, faults)
        metrics = found.metrics() | {"eval/faults": faults / max(1, wanted * samples)}
        self.folder.metrics(now, metrics)
        self.heard(step, metrics)
        self.trackers.look()
        self.folder.event("run", f"evaluation {when}", start, time.time())
        said = "  ".join(f"{env} {rate:.2f}" for env, rate in found.pass_rates.items())
        self.progress.note(f"held-out pass rate {WHEN.get(when, f'of step {step}')}: {said}")
        if self.best.wanted and too_few_judged(faults, wanted * samples):
            self.progress.note(
                f"{faults} of its {wanted * samples} episodes ended in a fault: it does not count for the "
                "best checkpoint"
            )
        self.best.choose()
        return found
