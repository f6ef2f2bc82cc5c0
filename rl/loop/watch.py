"""Watches a run: says in status.json what it does now, and notices when nothing in it moves any more.

What was judged or trained is a move. While the learner or a weight sync is at work (`busy`), its own deadline
watches over it, so that a run is stalled only when all that is left are episodes that do not end.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rl.actors.handles import Actors, by_node
from rl.actors.heartbeat import Heartbeats
from rl.config import RunConfig
from rl.fleet.fleet import Fleet
from rl.fleet.node_watch import NodeWatch
from rl.loop.dispatcher import Dispatcher
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from rl.record.status import ROWS, WRITE_SECONDS, Status, sentence, suspect
from rl.record.waiting import Latency
from rl.samples.ledger import Ledger
from rl.samples.reuse import ReuseBuffer
from rl.samples.sample_queue import SampleQueue
from rl.tasks.task_source import TaskSource

# Rows of the waiting-for table that a stalled run prints.
STALL_ROWS = 20


class Watched(Protocol):
    """What is read of a run."""

    config: RunConfig
    actors: Actors
    folder: RunFolder
    progress: Progress
    dispatcher: Dispatcher
    fleet: Fleet
    queue: SampleQueue
    reuse: ReuseBuffer
    task_source: TaskSource
    ledger: Ledger
    nodes: NodeWatch
    learner_version: int


class Watch:
    """Of one run, whose loops say in `busy` and `moved` what they do."""

    def __init__(self, run: Watched) -> None:
        self.run = run
        self._moved = time.monotonic()
        self._at_work: list[str] = []
        self._heartbeats = Heartbeats(lambda: run.actors.all)

    def moved(self) -> None:
        """The run has come forward just now."""
        self._moved = time.monotonic()

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """While the learner or a weight sync is at work, its own deadline watches over it."""
        self._at_work.append(what)
        try:
            yield
        finally:
            self._at_work.remove(what)
            self.moved()

    async def report(self) -> None:
        """Keeps status.json true. A disk that is full must not end the run for it."""
        try:
            while True:
                for name, heartbeat in (await self._heartbeats.ask()).items():
                    self.run.fleet.spans.idle(name, heartbeat.idle)
                self._write(await self._status())
                await asyncio.sleep(WRITE_SECONDS)
        finally:
            self._heartbeats.close()

    async def until_stalled(self) -> str:
        """Wait until nothing has moved for too long; then say what episodes wait for, return the sentence."""
        limit = self.run.config.timeouts.stall_seconds
        while True:
            await asyncio.sleep(min(5.0, limit / 4))
            before = self._moved
            still = time.monotonic() - before
            if still < limit or self._at_work:
                continue
            status = await self._status()
            if self._moved > before:
                continue
            self._write(status)
            for row in status.waiting[:STALL_ROWS]:
                self.run.progress.note(f"waiting: {sentence(row)}")
            return (
                f"nothing finished and nothing was trained for {still:.0f} s; the learner "
                f"{status.learner}; suspect: {suspect(status)}"
            )

    async def _status(self) -> Status:
        """What the run is doing now."""
        run = self.run
        table = await run.dispatcher.waiting(ROWS)
        counts: dict[str, dict[str, int]] = {}
        for (env, phase), count in table.counts.items():
            counts.setdefault(env, {})[phase] = count
        latency: dict[str, dict[str, Latency]] = {}
        for (env, phase), one in table.latency.items():
            latency.setdefault(env, {})[phase] = one
        window = run.fleet.window
        return Status(
            time=time.time(),
            stage=run.progress.stage_text,
            step=run.learner_version,
            steps=run.config.steps,
            learner=self._learner_waits_for(),
            window=window.versions,
            pending=window.pending,
            engines=dict(run.fleet.serves),
            asleep=tuple(sorted(run.fleet.asleep)),
            in_flight=sum(table.counts.values()),
            buffered=sum(len(group.ids) for group in run.queue.groups),
            counts=counts,
            waiting=table.rows,
            silent=table.silent,
            ledger=run.ledger.counts(),
            latency=latency,
            actors=self._heartbeats.states(),
            lost=tuple(run.nodes.sentences),
            nodes=by_node(run.nodes.actors),
        )

    def _write(self, state: Status) -> None:
        with suppress(OSError):
            self.run.folder.status(state.as_json())

    def _learner_waits_for(self) -> str:
        if self._at_work:
            return ", ".join(self._at_work)
        ready = len(self.run.queue.groups)
        wanted = self.run.config.batch.groups - self.run.reuse.available
        if ready < wanted:
            rests = self.run.task_source.open_breakers
            resting = f"; resting after faults: {', '.join(rests)}" if rests else ""
            return f"waits for a batch: {ready} of {wanted} groups are there{resting}"
        return "waits for stragglers: a step now would leave them too old to be trained on"
