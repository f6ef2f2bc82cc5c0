"""Watches a run: says in status.json what it does now, and notices when nothing in it moves any more.

A judged trajectory or a learner step is a move. While the learner or a weight sync is at work
(`Activity.busy`), its own deadline watches over it, so that a run is stalled only when all that is left are
episodes that do not end.
"""

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

from rl.actors.handles import Actors, by_node
from rl.actors.heartbeat import Heartbeats
from rl.fleet.fleet import Fleet
from rl.loop.dispatcher import Dispatcher
from rl.loop.group_book import GroupBook
from rl.loop.model_watch import ModelWatch
from rl.record.journal import Journal
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from rl.record.status import ROWS, WRITE_SECONDS, Status, sentence, suspect
from rl.record.waiting import Latency
from rl.tasks.task_source import TaskSource

# Rows of the waiting-for table that a stalled run prints.
STALL_ROWS = 20


class Activity:
    """The activity of a run's loops: when something moved last, and which long acts are at work."""

    def __init__(self) -> None:
        self.last_move = time.monotonic()
        self.at_work: list[str] = []

    def moved(self) -> None:
        """The run has come forward just now."""
        self.last_move = time.monotonic()

    @contextmanager
    def busy(self, what: str) -> Generator[None]:
        """While the learner or a weight sync is at work, its own deadline watches over it."""
        self.at_work.append(what)
        try:
            yield
        finally:
            self.at_work.remove(what)
            self.moved()


class Watch:
    """Watches one run, whose loops say in `activity` what they do."""

    def __init__(
        self,
        activity: Activity,
        book: GroupBook,
        fleet: Fleet,
        dispatcher: Dispatcher,
        task_source: TaskSource,
        actors: Actors,
        nodes: Journal,
        folder: RunFolder,
        progress: Progress,
        models: ModelWatch,
        *,
        steps: int,
        stall_seconds: float,
    ) -> None:
        """nodes: what has happened to nodes and actors. steps: of the whole run."""
        self.activity = activity
        self.book = book
        self.fleet = fleet
        self.dispatcher = dispatcher
        self.task_source = task_source
        self.actors = actors
        self.nodes = nodes
        self.folder = folder
        self.progress = progress
        self.models = models
        self.steps = steps
        self.stall_seconds = stall_seconds
        self._heartbeats = Heartbeats(lambda: actors.heartbeats)

    async def report(self) -> None:
        """Keep status.json true. A disk that is full must not end the run for it."""
        try:
            while True:
                for name, heartbeat in (await self._heartbeats.ask()).items():
                    self.fleet.spans.idle(name, heartbeat.idle)
                    self.fleet.pressure.hear(name, heartbeat)
                await self.models.look()
                self._write(await self._status())
                await asyncio.sleep(WRITE_SECONDS)
        finally:
            await self.models.look()
            self._heartbeats.close()

    async def until_stalled(self) -> str:
        """Wait until nothing has moved for too long; then say what episodes wait for, return the sentence."""
        limit = self.stall_seconds
        while True:
            await asyncio.sleep(min(5.0, limit / 4))
            before = self.activity.last_move
            still = time.monotonic() - before
            if still < limit or self.activity.at_work:
                continue
            status = await self._status()
            if self.activity.last_move > before:
                continue
            self._write(status)
            for row in status.waiting[:STALL_ROWS]:
                self.progress.note(f"waiting: {sentence(row)}")
            return (
                f"nothing finished and nothing was trained for {still:.0f} s; the learner "
                f"{status.learner}; suspect: {suspect(status)}"
            )

    async def _status(self) -> Status:
        """Ask the controllers what their episodes wait for, and put together what the run is doing now."""
        table = await self.dispatcher.waiting(ROWS)
        counts: dict[str, dict[str, int]] = {}
        for (env, phase), count in table.counts.items():
            counts.setdefault(env, {})[phase] = count
        latency: dict[str, dict[str, Latency]] = {}
        for (env, phase), one in table.latency.items():
            latency.setdefault(env, {})[phase] = one
        window = self.fleet.window
        return Status(
            time=time.time(),
            stage=self.progress.stage_text,
            step=self.book.learner_version,
            steps=self.steps,
            learner=self._learner_waits_for(),
            window=window.versions,
            pending=window.pending,
            engines=dict(self.fleet.serves),
            asleep=tuple(sorted(self.fleet.asleep)),
            in_flight=sum(table.counts.values()),
            buffered=sum(len(group.ids) for group in self.book.queue.groups),
            counts=counts,
            waiting=table.rows,
            silent=table.silent,
            ledger=self.book.ledger.counts(),
            latency=latency,
            actors=self._heartbeats.states(),
            lost=tuple(self.nodes.sentences),
            nodes=by_node(self.actors),
            models=tuple(self.models.states.values()),
        )

    def _write(self, state: Status) -> None:
        with suppress(OSError):
            self.folder.status(state.as_json())

    def _learner_waits_for(self) -> str:
        if self.activity.at_work:
            return ", ".join(self.activity.at_work)
        ready = len(self.book.queue.groups)
        wanted = self.book.batch.groups - self.book.reuse.available
        if ready < wanted:
            rests = self.task_source.open_breakers
            resting = f"; resting after faults: {', '.join(rests)}" if rests else ""
            return f"waits for a batch: {ready} of {wanted} groups are there{resting}"
        return "waits for stragglers: a step now would leave them too old to be trained on"
