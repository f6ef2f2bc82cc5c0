"""The run: rollouts, learner and weight sync as loops of one asyncio program.

    task stream -> rollout loop -> controllers -> sample queue -> learner loop -> weight sync -> engines
                      ^ admission (rollout.window)                                     |
                      +----------------------- a new version --------------------------+

All modes are this one loop: admission decides how far rollouts may run ahead of the learner. Only
control data passes here; tokens go from controllers to the learner by reference.

Backpressure: the rollout loop (`rl.loop.rollouts`) waits for room (unblocked by a finished group, a learner
step or a new version); the learner loop waits for a batch (unblocked by a finished group). The run ends
when neither has moved for `timeouts.stall_seconds`, and says what every episode is waiting for
(`rl.loop.watch`).
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rl.actors.judge_crash import JudgeCrashes
from rl.cluster import Cluster
from rl.config import RunConfig
from rl.fleet.engine_restarts import EngineRestarts
from rl.fleet.fleet import Fleet
from rl.fleet.node_watch import NodeWatch, control_seconds
from rl.fleet.transports import TRANSPORTS
from rl.fleet.weight_sync import WeightSync
from rl.loop.checkpoints import Checkpoints
from rl.loop.dispatcher import Dispatcher
from rl.loop.evaluation import Evaluations
from rl.loop.group_book import GroupBook
from rl.loop.learner_client import LearnerClient
from rl.loop.learning_watch import LearningWatch
from rl.loop.model_watch import ModelWatch
from rl.loop.resume import Resume
from rl.loop.rollouts import Rollouts
from rl.loop.run_error import Collapsed, RunError
from rl.loop.stop_rules import StopRules
from rl.loop.watch import Activity, Watch
from rl.models.drift import score_drifts
from rl.nodes.nodes import control_address
from rl.nodes.process import first_line
from rl.record.best_checkpoint import BestCheckpoint
from rl.record.journal import Journal
from rl.record.position import write_position
from rl.record.progress import STEP_SECONDS, Progress
from rl.record.run_folder import RunFolder
from rl.samples.metrics import outcome_totals
from rl.samples.reward_hacking import HackingMeters
from rl.tasks.task_source import TaskSource
from rl.trackers.trackers import Trackers
from rollout.scheduler import Backlog
from rollout.window import Window

# Training plays other tasks first than the demonstrations of the cold start, which use the plain seed.
TASK_SEED_OFFSET = 1_000_003


class Interrupted(Exception):
    """The run was asked to end, and has, after the step in progress."""


@dataclass(frozen=True)
class PublishedStep:
    """A version that the learner has made and copied, on its way to the engines; the metrics of its step."""

    step: int
    version: int
    snapshot_ms: float
    metrics: dict[str, float]


class Run:
    """One training run over started actors."""

    def __init__(
        self,
        config: RunConfig,
        cluster: Cluster,
        folder: RunFolder,
        progress: Progress,
        trackers: Trackers,
        resumed: Resume | None = None,
    ) -> None:
        """resumed: the learner is at its checkpoint already, and the folder goes on from there."""
        assert cluster.actors is not None, "the cluster has to be started"
        self.config = config
        self.actors = cluster.actors
        self.folder = folder
        self.progress = progress
        self.trackers = trackers
        self.resumed = resumed
        self.stoppable = False
        self.stopping = False
        # Versions that the learner has copied, for the sync loop.
        self.made: asyncio.Queue[PublishedStep] = asyncio.Queue()
        self.activity = Activity()
        first = resumed.step if resumed else 0
        self.book = GroupBook(
            config.batch,
            config.rules,
            config.seed,
            learner_version=first,
            hacking=HackingMeters(config.hacking, config.signals),
            drifts=score_drifts(config),
        )
        self.task_source = TaskSource(
            config.env,
            [table.make() for table in config.env],
            config.batch.group_size,
            config.seed_of(config.seed + TASK_SEED_OFFSET),
            Journal(progress, folder).say,
            config.kept,
        )
        self._build_fleet(cluster, first)
        self._build_loops(first)
        if resumed:
            self._go_on(resumed)

    def _build_fleet(self, cluster: Cluster, first: int) -> None:
        """Build what keeps the engines and nodes."""
        config, engine = self.config, self.config.engine
        shared_engines = config.shared_engines(list(self.actors.engines))
        self.node_journal = Journal(self.progress, self.folder)
        transport = TRANSPORTS["file"](self.actors, cluster.weights)
        self.fleet = Fleet(
            self.actors,
            WeightSync(self.actors, transport, config.timeouts.load_seconds, self.node_journal.say),
            config.rules,
            config.limits,
            self,
            shared_engines,
            adapters=config.learner.lora is not None,
            first=first,
            record=self.folder.event,
        )
        self.restarts = EngineRestarts(
            cluster,
            self.fleet,
            self.node_journal,
            engines=engine.count,
            most=engine.max_restarts,
            slow_seconds=engine.start_seconds,
            shared=shared_engines,
        )
        self.nodes = NodeWatch(
            self.actors,
            self.fleet,
            self.restarts,
            self.node_journal,
            control_address(),
            control_seconds(config.cluster.address),
        )

    def _build_loops(self, first: int) -> None:
        """Build what the loops work with."""
        config, timeouts = self.config, self.config.timeouts
        why = JudgeCrashes(self.folder.path / "logs", config.all_envs).why
        self.dispatcher = Dispatcher(self.actors, self.fleet, config.group_seconds, why)
        self.rollouts = Rollouts(
            self.book,
            self.fleet,
            self.dispatcher,
            self.task_source,
            self.activity,
            self.folder,
            self.progress,
            rebalance_seconds=config.rollout.rebalance_seconds,
            most=config.rollout.max_in_flight_groups,
        )
        self.stops = StopRules(config.stop, config.steps, Journal(self.progress, self.folder).say)
        self.learning = LearningWatch(Journal(self.progress, self.folder).say, self.book.hacking)
        self.best = BestCheckpoint(self.folder.path, self.progress.note, wanted=config.keeps_best)
        self.evaluations = Evaluations(
            config,
            self.rollouts,
            self.activity,
            self.folder,
            self.progress,
            self.trackers,
            self.stops.evaluated,
            self.best,
            part=f"-part{self.folder.part}" if self.resumed else "",
        )
        logs = self.folder.path / "logs"
        self.learner = LearnerClient(self.actors.learner, self.nodes, timeouts.step_seconds, logs)
        self.checkpoints = Checkpoints(
            self.learner,
            self.activity,
            self.folder,
            self.progress,
            self.best,
            every=config.checkpoint_every,
            minutes=config.checkpoint_minutes,
            steps=config.steps,
            first=first,
        )
        self.watch = Watch(
            self.activity,
            self.book,
            self.fleet,
            self.dispatcher,
            self.task_source,
            self.actors,
            self.node_journal,
            self.folder,
            self.progress,
            ModelWatch(self.actors.models, self.node_journal),
            steps=config.steps,
            stall_seconds=timeouts.stall_seconds,
        )

    def _go_on(self, resumed: Resume) -> None:
        """Take up the position of the earlier part."""
        self.task_source.restore(resumed.position)
        # Groups that were in flight at the end of the earlier part left nothing but their trajectories.
        most = self.config.rollout.max_in_flight_groups
        self.book.number = max(resumed.groups, self.folder.groups()) + most
        before = self.folder.metrics_lines()
        self.stops.restore(before)
        self.learning.restore(before)
        if rates := self.folder.eval_before():
            self.book.stats.evals["before"] = rates

    def backlog(self, window: Window) -> Backlog:
        """Where the run stands, for the fleet."""
        return self.book.backlog(window)

    def evict(self, versions: Sequence[int]) -> None:
        """Give up what is in flight on these versions, for the fleet."""
        self.rollouts.evict(versions)

    async def main(self) -> None:
        """Evaluate, train, evaluate. Raises RunError, CheckpointError, SyncError, NodesLost, LedgerError."""
        reporting = asyncio.create_task(self.watch.report())
        reporting.add_done_callback(self._say_why_it_ended)
        self.watching = asyncio.create_task(self.nodes.watch())
        try:
            await self._main()
        finally:
            reporting.cancel()
            self.watching.cancel()
            await asyncio.gather(reporting, self.watching, return_exceptions=True)
            await self.restarts.close()
            self.fleet.spans.close()

    async def _main(self) -> None:
        await self.fleet.start()
        if self.config.rules.live > len(self.actors.engines):
            self.progress.note(
                f"live_versions: {self.config.rules.live} versions need as many engines, there are "
                f"{len(self.actors.engines)}; a new version waits for an engine to drain"
            )
        if self.config.eval.before and self.resumed is None:
            await self.evaluations.run("before", self.watching)
        if left := self.config.steps - self.book.learner_version:
            await self._train(left)
        if self.config.eval.after:
            await self.fleet.settle()
            await self.evaluations.run("after", self.watching)
            await self.checkpoints.tidy()

    async def _train(self, left: int) -> None:
        """Make the `left` steps that the run still has to make."""
        if self.config.eval.beside:
            self.evaluations.prepare()
            if self.resumed is not None:
                self.evaluations.ask_again(self.resumed.step)
        self.progress.stage("training: first rollouts", usual=left * STEP_SECONDS)
        self.activity.moved()
        self.stoppable = True
        loops = [
            asyncio.create_task(loop)
            for loop in (
                self._learner_loop(),
                self._sync_loop(),
                self.rollouts.loop(),
                self.evaluations.loop(),
                self._end_when_stalled(),
                self._end_when_starved(),
                self._end_without_nodes(),
                self.restarts.failed(),
            )
        ]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await self._end(loops)
        await self.checkpoints.written(stopping=self._ends_early)
        self.stoppable = False
        if self.stopping:
            raise Interrupted
        if self.stops.collapsed:
            raise Collapsed(self.stops.sentence)

    def stop(self) -> bool:
        """Ask training to end after the step in progress, with a checkpoint of the last finished one.

        `main` then raises Interrupted. False where there is nothing to wait for: it does not train now, or
        was asked before.
        """
        if not self.stoppable or self.stopping:
            return False
        self.stopping = self.rollouts.stopping = True
        self.book.queue.end()
        self.evaluations.give_up()
        return True

    @property
    def _ends_early(self) -> bool:
        """True if training ends before its last step."""
        return self.stopping or bool(self.stops.sentence)

    def summary(self) -> dict[str, object]:
        """The run so far, as summary.json has it."""
        resumed, book = self.resumed, self.book
        from_ = {"step": resumed.step, "checkpoint": str(resumed.checkpoint)} if resumed else None
        return {
            "steps": book.learner_version,
            "resumed": from_,
            "ended_early": self.stops.sentence,
            "best": None if self.best.best is None else asdict(self.best.best),
            "trajectories": sum(book.ledger.dispatched.values()),
            **book.stats.summary(),
            "fleet": dict(sorted(self.fleet.counts.items())),
            "ledger": outcome_totals(book.ledger.counts()),
        }

    def _say_why_it_ended(self, reporting: asyncio.Task[None]) -> None:
        if not reporting.cancelled() and (error := reporting.exception()) is not None:
            self.progress.note(f"status.json is not written any more: {first_line(error)}")

    async def _learner_loop(self) -> None:
        """Train.

        consumes: batches of the queue   produces: a policy version per step, for the sync loop
        waits for: a whole batch         unblocked by: a finished group (rollout loop)
        """
        book = self.book
        for step in range(book.learner_version + 1, self.config.steps + 1):
            start = time.time()
            await self._take_batch()
            if self._ends_early:
                break
            ready = time.time()
            self.folder.event("learner", "wait for batch", start, ready)
            if self.fleet.shared_engines:  # an engine that sleeps takes no weights
                await self.made.join()
            with self.activity.busy(f"step {step}"):
                await self.fleet.sleep_shared()
                samples = [group.samples for group in book.reuse.mix(book.training, book.reused)]
                result = await self.learner.step(step, samples)
                await self.fleet.wake_shared()
                self.rollouts.changed.set()
            trained = time.time()
            self.folder.event("learner", f"step {step}", ready, trained)
            await self.made.join()  # one version at a time is on its way to the engines
            self.folder.experts(step, result.computing_experts, result.expert_loads)
            self.task_source.train(group.env for group in book.training)
            values = book.trained(result.metrics) | self.task_source.metrics()
            values |= self.watch.models.metrics()
            book.drop_stale()
            self.rollouts.changed.set()  # the batch has left room
            version = book.learner_version
            with self.activity.busy(f"copies the weights of version {version}"):
                snapshot_ms = await self.fleet.sync.snapshot(version)
            copied = time.time()
            book.stats.stepped(copied - start, ready - start)
            self.folder.event("learner", "wait for policy", trained, copied)
            values |= {
                "time/wait_for_batch_seconds": ready - start,
                "time/learner_seconds": trained - ready,
                "time/total_seconds": copied - start,
                "time/tokens_per_second": values["rollout_tokens"] / (copied - start),
            }
            book.check()
            self.made.put_nowait(PublishedStep(step, version, snapshot_ms, values))
            self.learning.step(step, values)
            if self.stops.step(step, values):
                self.rollouts.stopping = True
                break
            evaluated = self.evaluations.ask(step) and self.config.keeps_best
            await self._checkpoint(step, evaluated=evaluated)
        await self.made.join()
        await self._checkpoint(book.learner_version)
        if not self.stopping:
            self.rollouts.stopping = True
            if self.stops.collapsed:
                self.evaluations.give_up("the run has collapsed")
            await self.evaluations.ended()

    async def _sync_loop(self) -> None:
        """Bring versions to the engines while the learner goes on.

        consumes: versions that the learner has copied   produces: them on the engines, a step's metrics
        waits for: a copied version                      unblocked by: the learner loop
        """
        while True:
            made = await self.made.get()
            start = time.time()
            with self.activity.busy(f"publishes version {made.version}"):
                times = await self.fleet.publish(made.version, made.snapshot_ms)
            self.book.stats.synced(times.pause_ms, times.staging_ms)
            # Groups may begin on it at once: engines would wait for the records.
            self.rollouts.changed.set()
            self.folder.learned(made.step, await self.learner.record(made.step))
            done = time.time()
            self.folder.event("sync", f"version {made.version}", start, done)
            values = made.metrics | times.metrics() | {"time/sync_seconds": done - start}
            self.folder.metrics(made.step, values)
            self.trackers.look()
            self.progress.step(made.step, self.config.steps, values)
            self.made.task_done()

    async def _take_batch(self) -> None:
        """Wait for a step's groups whose samples are all there; those gone with a node are closed."""
        book = self.book
        while not self._ends_early:
            await book.take_batch()
            if self._ends_early:
                return
            batch = [*book.training, *book.reused]
            lost = await self.learner.lost([group.samples for group in batch])
            if not lost:
                return
            gone = {batch[index].id for index in lost}
            book.put_back(gone)
            self.progress.note(f"the samples of {len(gone)} groups are gone with their node")
            self.rollouts.changed.set()

    async def _checkpoint(self, step: int, *, evaluated: bool = False) -> None:
        def position() -> str:
            return write_position(self.book.number, self.task_source.position())

        await self.checkpoints.begin(step, position, stopping=self._ends_early, evaluated=evaluated)

    async def _end_when_stalled(self) -> None:
        raise RunError(await self.watch.until_stalled())

    async def _end_when_starved(self) -> None:
        """End the learner loop where groups are played in vain and no batch fills, if the guard says so."""
        book, stats = self.book, self.book.stats

        def starved() -> bool:
            counts = stats.judged_since, stats.unused_since
            return self.stops.starved(book.learner_version, book.batch.groups, *counts)

        await self.rollouts.until(starved)
        self.rollouts.stopping = True
        book.queue.end()
        await asyncio.Future()

    async def _end_without_nodes(self) -> None:
        """Raise what the watch over the nodes does, since before there were loops."""
        await asyncio.shield(self.watching)

    async def _end(self, loops: list[asyncio.Task[None]]) -> None:
        """Stop the loops and what they still play; book it as cancelled, and balance the books."""
        for task in loops:
            task.cancel()
        await self.rollouts.end()
        await asyncio.gather(*loops, return_exceptions=True)
        self.book.cancel_all()
        self.book.check()
