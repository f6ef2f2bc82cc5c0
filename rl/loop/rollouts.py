"""The rollout loop: begins groups where admission has room, has them played, and books what became of them.

    task stream -> admission -> dispatcher -> GroupBook (queue or ledger)

Admission and eviction are the fleet's decisions (`rollout.scheduler`), the next environment and task those of
`rl.tasks.task_source`. Only control data passes here.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rl.fleet.fleet import Fleet
from rl.loop.dispatcher import Lost, Played
from rl.loop.group_book import GroupBook
from rl.loop.run_error import RunError
from rl.loop.watch import Activity
from rl.nodes.deadline import within
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from rl.samples.group import GroupReport, GroupSpec
from rl.tasks.task_source import TaskSource

# So many groups in a row (or four times what is played at once) without one judged trajectory end the
# run: nothing can be learned any more.
MAX_FAILED_GROUPS = 50
# So many judged groups in a row of which none gave a sample (or so many times what is played at once) are
# said, and end the run.
UNUSED_SAID, UNUSED_SAID_TIMES = 64, 4
UNUSED_END, UNUSED_END_TIMES = 512, 16


class Plays(Protocol):
    """The part of a dispatcher that plays groups."""

    async def play(self, spec: GroupSpec) -> Played | Lost | None:
        """Play a group."""
        ...

    def give_up(self, group: str) -> None:
        """Stop playing a group."""
        ...

    def cancel(self) -> None:
        """Stop playing all of them."""
        ...


class Rollouts:
    """Begins and books the groups of one run."""

    def __init__(
        self,
        book: GroupBook,
        fleet: Fleet,
        dispatcher: Plays,
        task_source: TaskSource,
        activity: Activity,
        folder: RunFolder,
        progress: Progress,
        *,
        rebalance_seconds: float,
        most: int,
    ) -> None:
        """rebalance_seconds: the longest time between two rebalances. most: groups in flight at once."""
        self.book = book
        self.fleet = fleet
        self.dispatcher = dispatcher
        self.task_source = task_source
        self.activity = activity
        self.folder = folder
        self.progress = progress
        self.rebalance_seconds = rebalance_seconds
        self.limit = max(MAX_FAILED_GROUPS, 4 * most)
        self.unused_said = max(UNUSED_SAID, UNUSED_SAID_TIMES * most)
        self.unused_end = max(UNUSED_END, UNUSED_END_TIMES * most)
        # Set whenever more groups may be able to begin.
        self.changed = asyncio.Event()
        self.stopping = False
        self._groups: set[asyncio.Task[None]] = set()
        self._failed: list[asyncio.Task[None]] = []
        # Who waits for something to be so, and looks each time that something has changed.
        self._waiting: list[asyncio.Future[None]] = []

    async def loop(self) -> None:
        """Admit groups.

        consumes: the task stream       produces: a task per group, which ends in the queue or the ledger
        waits for: room in the window   unblocked by: a finished group, a learner step, a new version
        """
        while True:
            # What changes while it looks is looked at again.
            self.changed.clear()
            if (
                not all(map(self.fleet.served, self.fleet.admit()))
                and not self.fleet.expects_version
            ):
                await self.fleet.rebalance("unserved")
            for version, count in self.fleet.admit().items():
                # Without an engine even now, while many of them sleep, it has to wait for a change.
                room = count if self.fleet.served(version) else 0
                while room and self._begin(version, room):
                    room -= 1
            self._look()
            why = await self._wait_for_change()
            for group in self._failed:
                group.result()
            if why is not None:
                await self.fleet.rebalance(why)

    async def play(self, spec: GroupSpec) -> Played | None:
        """Play a group; None where it was given up, or lost, which is told and counted.

        Raises RunError where the settings weigh a reward that nobody gives, and where controllers die under
        all groups.
        """
        ended = await self.dispatcher.play(spec)
        if isinstance(ended, Lost):
            self.book.stats.lost(ended.why)
            if not ended.told:
                self.progress.note(f"group {spec.id} ({spec.env}) was lost: {ended.why}")
            if self.book.stats.failed_in_a_row >= self.limit:
                raise RunError(
                    f"the last {self.limit} groups all ended in faults, most recently: {ended.why}; the "
                    "controllers' logs (logs/controller-*.log) end with where, in a judge perhaps"
                )
            return None
        if ended is not None and (wrong := self.task_source.reward_names.book(ended.report)):
            raise RunError(wrong)
        return ended

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`, which is asked each time that something in the run has changed."""
        while not ready():
            self._waiting.append(waiting := asyncio.get_running_loop().create_future())
            await waiting

    async def play_beside(self, spec: GroupSpec) -> tuple[Played | None, bool]:
        """Play a held-out group while training goes on; its version stays until it has ended.

        Returns what `play` does, and whether it was given up with its version. Raises RunError.
        """
        self.book.heldout[spec.id] = spec
        try:
            played = await self.play(spec)
            return played, spec.id not in self.book.heldout
        finally:
            self.book.heldout.pop(spec.id, None)
            self.changed.set()

    def evict(self, versions: Sequence[int]) -> None:
        """Give up what is in flight on these versions; their tasks begin anew, as fresh ones."""
        for spec in self.book.evict_heldout(versions):
            self.dispatcher.give_up(spec.id)
        for spec in self.book.evict(versions):
            self.task_source.put_back(spec.id)
            self.dispatcher.give_up(spec.id)
        self.changed.set()

    async def end(self) -> None:
        """Stop playing. Groups in flight stay in the book, to be closed there."""
        self.dispatcher.cancel()
        groups = list(self._groups)
        for group in groups:
            group.cancel()
        await asyncio.gather(*groups, return_exceptions=True)

    def _look(self) -> None:
        """Wake who waits in `until`."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def _wait_for_change(self) -> str | None:
        """Wait until something has changed. Returns why a rebalance is due, if it is."""
        period = self.rebalance_seconds
        probe = self.task_source.next_probe(time.monotonic())
        try:
            await within(self.changed.wait(), period if probe is None else min(period, probe))
        except TimeoutError:
            return self.fleet.due()
        window = self.fleet.window
        if window.pending is not None and self.book.drained(window.versions[0]):
            return "drained"
        return self.fleet.due()

    def _begin(self, version: int, room: int) -> bool:
        """Begin one of `room` groups. Returns False where none may begin now."""
        if self.stopping:
            return False
        begun = self.task_source.begin(self.book.next_id, time.monotonic(), room)
        if begun is None:
            return False
        env, task = begun
        spec = self.book.begin(env, task, version)
        self._groups.add(group := asyncio.create_task(self._train_on(spec)))
        group.add_done_callback(self._ended)
        return True

    def _ended(self, group: asyncio.Task[None]) -> None:
        """An error in booking a group ends the run, by way of the loop."""
        self._groups.discard(group)
        if not group.cancelled() and group.exception() is not None:
            self._failed.append(group)
            self.changed.set()

    async def _train_on(self, spec: GroupSpec) -> None:
        """Play a group and book what became of each trajectory."""
        try:
            played = await self.play(spec) if spec.id in self.book.in_flight else None
            if spec.id not in self.book.in_flight:  # evicted, and booked as such
                return
            if played is None:
                self.task_source.lost(spec.id)
                self.book.lose(spec.id)
            else:
                self._book(played)
        finally:
            self.changed.set()
            self.book.queue.recheck()

    def _book(self, played: Played) -> None:
        """Book a group; say each new fault once. Raises RunError when there is nothing but faults."""
        report = played.report
        for member in self.book.book(report, played.samples):
            self.progress.note(f"{member.id} ({report.spec.env}): {member.fault}")
        self.folder.index(report, "train")
        forecast = self.task_source.end(report, time.monotonic())
        self.folder.event(
            "rollout", report.spec.env, report.start, report.end, group=report.spec.id, **forecast
        )
        self.fleet.counts["tokens_prefilled_again"] += report.reprefilled_tokens
        self._check_use(report)
        if not self.book.stats.failed_in_a_row:
            self.activity.moved()
            return
        last = f"most recently: {report.members[-1].fault}"
        if self.book.stats.failed_in_a_row >= self.limit:
            raise RunError(f"the last {self.limit} groups all ended in faults, {last}")
        if self.task_source.all_failed:
            raise RunError(f"no environment has worked so far, {last}")

    def _check_use(self, report: GroupReport) -> None:
        """Say that groups give nothing to learn from; raise RunError once too many in a row have not."""
        stats, env = self.book.stats, report.spec.env
        rewards = {member.reward for member in report.members if member.judged}
        if report.sample_ids or not rewards:
            return
        over = stats.unused_in_a_row >= self.unused_end
        if not over and stats.unused[env] != self.unused_said:
            return
        reasons = sorted({drop.reason for drop in report.dropped if drop.reason})
        why = (
            f"in each, all rewards were the same, most recently {min(rewards):g}"
            if len(rewards) == 1
            else f"left out as {', '.join(reasons)}"
        )
        count = stats.unused_in_a_row if over else stats.unused[env]
        whose = "" if over else f" of environment {env!r}"
        sentence = (
            f"the last {count} groups{whose} gave nothing to learn from ({why}): make the tasks easier or "
            "harder (difficulty, curriculum), begin with a better policy ([sft]), raise batch.group_size, or "
            "set batch.filter_zero_variance = false"
        )
        if over:
            raise RunError(sentence)
        self.progress.note(sentence)
