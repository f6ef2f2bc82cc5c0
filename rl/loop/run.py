"""The run: rollouts, learner and weight sync as loops of one asyncio program.

    task stream -> rollout loop -> controllers -> sample queue -> learner loop -> weight sync -> engines
                      ^ admission (rollout.window)                                     |
                      +----------------------- a new version --------------------------+

All modes are this one loop: admission decides how far rollouts may run ahead of the learner. Only
control data passes here; tokens go from controllers to the learner by reference.

Backpressure: the rollout loop waits for room (unblocked by a finished group, a learner step or a new
version); the learner loop waits for a batch (unblocked by a finished group). The run ends
when neither has moved for `timeouts.stall_seconds`, and says what every episode is waiting for
(`rl.loop.watch`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ray.exceptions import RayError

from rl.cluster import Cluster
from rl.config import RunConfig
from rl.fleet.engine_restarts import EngineRestarts
from rl.fleet.fleet import Fleet
from rl.fleet.node_watch import NodeWatch
from rl.fleet.weight_sync import WeightSync
from rl.loop.checkpoints import Checkpoints
from rl.loop.dispatcher import Dispatcher
from rl.loop.evaluation import evaluate
from rl.loop.resume import Resume
from rl.loop.totals import RunStats
from rl.loop.watch import Watch
from rl.nodes.deadline import within
from rl.nodes.process import cause, first_line
from rl.record.position import write_position
from rl.record.progress import EVALUATION_SECONDS, STEP_SECONDS, Progress
from rl.record.run_folder import RunFolder
from rl.record.wandb_sink import WandbSink
from rl.samples.group import GroupReport, GroupSpec
from rl.samples.ledger import Ledger
from rl.samples.metrics import outcome_totals, pass_rates
from rl.samples.reuse import ReuseBuffer
from rl.samples.sample_queue import BufferedGroup, SampleQueue, count_by_version
from rl.samples.selection import SelectionBias
from rl.tasks.task_source import TaskSource
from rollout.scheduler import Backlog
from rollout.window import may_step
from trainer.checkpoint_folder import CheckpointError

# Training plays other tasks first than the demonstrations of the cold start, which use the plain seed.
TASK_SEED_OFFSET = 1_000_003
# So many groups in a row (or four times what is played at once) without one judged trajectory end the
# run: nothing can be learned any more.
MAX_FAILED_GROUPS = 50


T = TypeVar("T")


class RunError(Exception):
    """The run cannot go on; the message is one sentence for the user."""


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
        sink: WandbSink,
        resumed: Resume | None = None,
    ) -> None:
        """resumed: the learner is at its checkpoint already, and the folder goes on from there."""
        assert cluster.actors is not None, "the cluster has to be started"
        self.config = config
        self.actors = cluster.actors
        self.folder = folder
        self.progress = progress
        self.sink = sink
        sync = WeightSync(self.actors, cluster.weights, config.timeouts.load_seconds)
        self.shared_engines = config.shared_engines(list(self.actors.engines))
        self.fleet = Fleet(
            self.actors,
            sync,
            config.rules,
            config.limits,
            self._backlog,
            self._evict,
            self.shared_engines,
            adapters=config.learner.lora is not None,
            first=resumed.step if resumed else 0,
            record=folder.event,
        )
        self.dispatcher = Dispatcher(
            self.actors, config.episode.max_seconds, self._lost, self.fleet.push_engine_map
        )
        self.selection = SelectionBias()
        self.ledger = Ledger(closed=self.selection.close)
        self.queue = SampleQueue(config.rules.max_staleness)
        share = config.batch.groups - config.batch.fresh_groups
        self.reuse = ReuseBuffer(share, config.rules.max_staleness, config.seed)
        envs = [table.make() for table in config.env]
        seed = config.seed + TASK_SEED_OFFSET
        self.task_source = TaskSource(config, envs, seed, self._changed)
        self.nodes = NodeWatch(self.actors, self.fleet.lose, self._replace, self._changed)
        self.restarts = EngineRestarts(
            cluster,
            self.fleet.join,
            self.nodes.say,
            engines=config.engine.count,
            most=config.engine.max_restarts,
            slow_seconds=config.engine.start_seconds,
        )
        self.resumed = resumed
        self.learner_version = resumed.step if resumed else 0
        self.stoppable = False
        self.stopping = False
        self.in_flight: dict[str, GroupSpec] = {}
        # Groups of `in_flight` per version: counted as they come and go, for it is asked at every change.
        self.playing: Counter[int | None] = Counter()
        # What the learner steps on: groups for the first time, which the ledger follows, and reused ones.
        self.training: list[BufferedGroup] = []
        self.reused: list[BufferedGroup] = []
        self.groups: set[asyncio.Task[None]] = set()
        self.failed_groups: list[asyncio.Task[None]] = []
        self.number = 0
        if resumed:
            self.task_source.restore(resumed.position)
            # Of groups that were in flight at its end, the earlier part left nothing but their trajectories.
            most = config.rollout.max_in_flight_groups
            self.number = max(resumed.groups, folder.groups()) + most
        self.changed = asyncio.Event()
        self.watch = Watch(self)
        self.checkpoints = Checkpoints(
            config,
            self.actors.learner,
            folder,
            progress,
            self.watch.busy,
            self._bounded,
            first=self.learner_version,
        )
        self.made: asyncio.Queue[PublishedStep] = asyncio.Queue()
        self.failed_in_a_row = 0
        self.totals = RunStats()
        if resumed and (before := folder.eval_before()):
            self.totals.evals["before"] = before

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
            await self.evaluate("before")
        left = self.config.steps - self.learner_version
        self.progress.stage("training: first rollouts", usual=left * STEP_SECONDS)
        self.watch.moved()
        self.stoppable = True
        loops = [
            asyncio.create_task(loop)
            for loop in (
                self._learner_loop(),
                self._sync_loop(),
                self._rollout_loop(),
                self._end_when_stalled(),
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
        await self.checkpoints.written(stopping=self.stopping)
        self.stoppable = False
        if self.stopping:
            raise Interrupted
        if self.config.eval.after:
            await self.fleet.settle()
            await self.evaluate("after")

    def stop(self) -> bool:
        """Ask training to end after the step in progress, with a checkpoint of the last finished one.

        `main` then raises Interrupted. False where there is nothing to wait for: it does not train now, or
        was asked before.
        """
        if not self.stoppable or self.stopping:
            return False
        self.stopping = True
        self.queue.end()
        return True

    async def evaluate(self, when: str) -> None:
        """Play the held-out tasks once each, at the training temperature."""
        self.progress.stage(f"evaluation {when} training", usual=EVALUATION_SECONDS)
        start = time.time()
        with self.watch.busy("waits for the evaluation"):
            reports, wanted = await self._while_watching(
                evaluate(self.config, self.dispatcher, self._unique(when), self.progress.episodes)
            )
        for report in reports:
            self.folder.index(report, f"heldout-{when}")
        self.totals.evals[when] = pass_rates(reports)
        self.totals.eval_faults[when] = wanted - sum(m.judged for r in reports for m in r.members)
        values = {f"eval/{env}/pass_rate": rate for env, rate in self.totals.evals[when].items()}
        self.folder.metrics(self.learner_version, values)
        self.sink.log(self.learner_version, values)
        self.folder.event("run", f"evaluation {when}", start, time.time())
        rates = "  ".join(f"{env} {rate:.2f}" for env, rate in self.totals.evals[when].items())
        self.progress.note(f"held-out pass rate {when} training: {rates}")

    async def _while_watching(self, act: Coroutine[Any, Any, T]) -> T:
        """What `act` returns. Raises what the watch over the nodes does, if that comes first."""
        acting = asyncio.create_task(act)
        try:
            await asyncio.wait({acting, self.watching}, return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                self.watching.result()
            return await acting
        finally:
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)

    def _unique(self, when: str) -> str:
        """Of a run that goes on, an evaluation has trajectories of other ids than the one before."""
        return f"{when}-from-{self.resumed.step}" if self.resumed else when

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the run so far."""
        return {
            "steps": self.learner_version,
            "resumed": {"step": self.resumed.step, "checkpoint": str(self.resumed.checkpoint)}
            if self.resumed
            else None,
            "trajectories": sum(self.ledger.dispatched.values()),
            **self.totals.summary(),
            "fleet": dict(sorted(self.fleet.counts.items())),
            "ledger": outcome_totals(self.ledger.counts()),
        }

    def _say_why_it_ended(self, reporting: asyncio.Task[None]) -> None:
        if not reporting.cancelled() and (error := reporting.exception()) is not None:
            self.progress.note(f"status.json is not written any more: {first_line(error)}")

    async def _rollout_loop(self) -> None:
        """Admits groups.

        consumes: the task stream       produces: a task per group, which ends in the queue or the ledger
        waits for: room in the window   unblocked by: a finished group, a learner step, a new version
        """
        while True:
            if not all(map(self.fleet.served, self.fleet.admit())):
                await self.fleet.rebalance("unserved")
            for version, count in self.fleet.admit().items():
                # Without an engine even now, while many of them sleep, it has to wait for a change.
                room = count if self.fleet.served(version) else 0
                while room and self._begin_group(version, room):
                    room -= 1
            self.changed.clear()
            why = await self._wait_for_change()
            for group in self.failed_groups:
                group.result()
            if why is not None:
                await self.fleet.rebalance(why)

    async def _wait_for_change(self) -> str | None:
        """Wait until something has changed. Returns why a rebalance is due, if it is."""
        period = self.config.rollout.rebalance_seconds
        probe = self.task_source.next_probe(time.monotonic())
        try:
            await within(self.changed.wait(), period if probe is None else min(period, probe))
        except TimeoutError:
            due = probe is None or probe >= period
            return "timer" if due and self.fleet.rules.live > 1 else None
        window = self.fleet.window
        drained = not self.playing[window.versions[0]]
        return "drained" if window.pending is not None and drained else None

    def _begin_group(self, version: int, room: int) -> bool:
        """Begin one of `room` groups; False where none may begin now."""
        if self.stopping:
            return False
        id = f"g{self.number:06}"
        begun = self.task_source.begin(id, time.monotonic(), room)
        if begun is None:
            return False
        label, task = begun
        self.number += 1
        ids = tuple(f"{id}.{index}" for index in range(self.config.batch.group_size))
        pinned = None if self.fleet.rules.in_place else version
        spec = GroupSpec(id, label, task, ids, train=True, version=pinned)
        self.ledger.dispatch(label, ids)
        self.selection.dispatch(label, len(ids))
        self.in_flight[id] = spec
        self.playing[pinned] += 1
        self.groups.add(group := asyncio.create_task(self._train_group(spec)))
        group.add_done_callback(self._group_ended)
        return True

    def _group_ended(self, group: asyncio.Task[None]) -> None:
        """What went wrong in booking a group ends the run, by way of the rollout loop."""
        self.groups.discard(group)
        if not group.cancelled() and group.exception() is not None:
            self.failed_groups.append(group)
            self.changed.set()

    def _backlog(self) -> Backlog:
        """Where the run stands, as the scheduler sees it."""
        newest = self.fleet.window.newest
        groups = {newest if v is None else v: n for v, n in self.playing.items()}
        buffered = Counter(count_by_version(self.queue.groups))
        buffered.update(count_by_version(self.training))
        return Backlog(
            window=self.fleet.window,
            learner_version=self.learner_version,
            active={v: n * self.config.batch.group_size for v, n in groups.items()},
            groups=groups,
            buffered=buffered,
        )

    def _may_step(self, rest: Sequence[BufferedGroup]) -> bool:
        """Whether a step leaves nothing behind that would become too old."""
        remaining = Counter({v: n for v, n in self.playing.items() if v is not None})
        remaining.update(count_by_version(rest))
        limits = self.fleet.limits
        return may_step(self.learner_version, remaining, limits.batch_groups, self.fleet.rules)

    async def _train_group(self, spec: GroupSpec) -> None:
        """Play a group and book what became of each trajectory."""
        try:
            played = await self.dispatcher.play(spec) if spec.id in self.in_flight else None
            if spec.id not in self.in_flight:  # evicted, and booked as such
                return
            self._leave(spec)
            if played is None:
                self.task_source.lost(spec.id)
                self.ledger.close(spec.ids, "failed", "controller_fault")
                return
            report, samples = played
            self.totals.played(report)
            self.selection.played(spec.env, report.members)
            self.folder.index(report, "train")
            self.folder.event("rollout", spec.env, report.start, report.end, group=spec.id)
            self.fleet.counts["tokens_prefilled_again"] += report.reprefilled_tokens
            for drop in report.dropped:
                self.ledger.close(drop.ids, drop.outcome, drop.reason)
            self._count_faults(report)
            if report.sample_ids:
                self.ledger.buffer(report.sample_ids)
                oldest = {m.id: min(m.versions) for m in report.members if m.versions}
                versions = tuple(oldest[id] for id in report.sample_ids)
                self.queue.put(
                    BufferedGroup(spec.id, spec.env, report.sample_ids, versions, samples)
                )
                self._drop_stale()
        finally:
            self.changed.set()
            self.queue.recheck()

    def _leave(self, spec: GroupSpec) -> None:
        del self.in_flight[spec.id]
        self.playing -= Counter((spec.version,))

    def _evict(self, versions: Sequence[int]) -> None:
        """Give up what is in progress on these versions; their tasks begin anew, as fresh ones."""
        for spec in [s for s in self.in_flight.values() if s.version in versions]:
            self._leave(spec)
            self.ledger.close(spec.ids, "stale", "evicted")
            self.task_source.put_back(spec.id)
            self.dispatcher.give_up(spec.id)
        self.changed.set()

    def _lost(self, spec: GroupSpec, why: str) -> None:
        self.totals.faults[why] += 1
        self.progress.note(f"group {spec.id} ({spec.env}) was lost: {why}")

    def _replace(self, engine: str) -> None:
        """An engine has died. One on the learner's own devices is done without."""
        if engine not in self.shared_engines:
            self.restarts.replace(engine)

    def _changed(self, label: str, sentence: str) -> None:
        """TaskSource has changed something of an environment."""
        now = time.time()
        self.progress.note(sentence)
        self.folder.event("supervision", label, now, now, what=sentence)

    def _count_faults(self, report: GroupReport) -> None:
        """Say each new fault once, and what it changes; end the run when there is nothing but faults."""
        for member in report.members:
            if member.fault:
                if member.fault not in self.totals.faults:
                    self.progress.note(f"{member.id} ({report.spec.env}): {member.fault}")
                self.totals.faults[member.fault] += 1
        self.task_source.end(report, time.monotonic())
        if any(m.judged for m in report.members):
            self.failed_in_a_row = 0
            self.watch.moved()
            return
        self.failed_in_a_row += 1
        limit = max(MAX_FAILED_GROUPS, 4 * self.config.rollout.max_in_flight_groups)
        last = f"most recently: {report.members[-1].fault}"
        if self.failed_in_a_row >= limit:
            raise RunError(f"the last {limit} groups all ended in faults, {last}")
        if self.task_source.all_failed:
            raise RunError(f"no environment has worked so far, {last}")

    async def _learner_loop(self) -> None:
        """Trains.

        consumes: batches of the queue   produces: a policy version per step, for the sync loop
        waits for: a whole batch         unblocked by: a finished group (rollout loop)
        """
        timeouts = self.config.timeouts
        for step in range(self.learner_version + 1, self.config.steps + 1):
            start = time.time()
            await self._take_batch()
            if self.stopping:
                break
            ready = time.time()
            self.folder.event("learner", "wait for batch", start, ready)
            if self.fleet.shared_engines:  # an engine that sleeps takes no weights
                await self.made.join()
            with self.watch.busy(f"step {step}"):
                await self.fleet.sleep_shared()
                result = await self._bounded(
                    self.actors.learner.step.remote(
                        [g.samples for g in self.reuse.mix(self.training, self.reused)]
                    ),
                    timeouts.step_seconds,
                    f"learner step {step}",
                )
                await self.fleet.wake_shared()
                self.changed.set()
            trained = time.time()
            self.folder.event("learner", f"step {step}", ready, trained)
            await self.made.join()  # one version at a time is on its way to the engines
            self.folder.experts(step, result.computing_experts, result.expert_loads)
            values = self._book_step(result.metrics)
            self.learner_version += 1
            self.reuse.trained(self.training, self.learner_version)
            self.training, self.reused = [], []
            self._drop_stale()
            with self.watch.busy(f"copies the weights of version {self.learner_version}"):
                snapshot_ms = await self.fleet.snapshot(self.learner_version)
            copied = time.time()
            self.totals.stepped(copied - start, ready - start)
            self.folder.event("learner", "wait for policy", trained, copied)
            values |= {
                "time/wait_for_batch_seconds": ready - start,
                "time/learner_seconds": trained - ready,
                "time/total_seconds": copied - start,
                "time/tokens_per_second": values["rollout_tokens"] / (copied - start),
            }
            self._check_books()
            self.made.put_nowait(PublishedStep(step, self.learner_version, snapshot_ms, values))
            await self._checkpoint(step)
        await self.made.join()
        await self._checkpoint(self.learner_version)

    async def _sync_loop(self) -> None:
        """Brings versions to the engines while the learner goes on.

        consumes: versions that the learner has copied   produces: them on the engines, a step's metrics
        waits for: a copied version                      unblocked by: the learner loop
        """
        while True:
            made = await self.made.get()
            start = time.time()
            with self.watch.busy(f"publishes version {made.version}"):
                times = await self.fleet.publish(made.version)
            record = self.actors.learner.record.remote()
            seconds = self.config.timeouts.step_seconds
            learned = await self._bounded(record, seconds, f"the record of step {made.step}")
            self.folder.learned(made.step, learned)
            times = replace(times, snapshot_ms=made.snapshot_ms)
            self.totals.synced(times)
            self.changed.set()
            done = time.time()
            self.folder.event("sync", f"version {made.version}", start, done)
            values = made.metrics | times.metrics() | {"time/sync_seconds": done - start}
            self.folder.metrics(made.step, values)
            self.sink.log(made.step, values)
            self.progress.step(made.step, self.config.steps, values)
            self.made.task_done()

    async def _take_batch(self) -> None:
        """Wait for a step's groups: new ones, and in place of some of them those that can be reused."""
        count = self.config.batch.groups
        while not self.stopping:
            self.training = await self.queue.take(
                count,
                self.learner_version,
                self._may_step,
                fewest=count - self.reuse.available,
            )
            if not self.stopping:
                self.reused = self.reuse.draw(count - len(self.training), self.learner_version)
                if await self._all_there():
                    return

    async def _all_there(self) -> bool:
        """Whether the batch's samples are; of one whose are gone with a node, the other groups wait again."""
        batch = [*self.training, *self.reused]
        fetched = self.actors.learner.lost.remote([group.samples for group in batch])
        seconds = self.config.timeouts.step_seconds
        lost = {batch[n].id for n in await self._bounded(fetched, seconds, "the next batch")}
        if not lost:
            return True
        batch, self.training, self.reused = self.training, [], []
        for group in batch:
            if group.id in lost:
                self.ledger.close(group.ids, "failed", "node_lost")
            else:
                self.queue.put(group)
        self.reuse.forget(lost)
        self.progress.note(f"the samples of {len(lost)} groups are gone with their node")
        self.changed.set()
        return False

    def _book_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Close the batch's trajectories in the ledger; the step's metrics so far."""
        for group in self.training:
            self.ledger.close(group.ids, "trained")
        self.task_source.train(group.env for group in self.training)
        groups = (*self.training, *self.reused)
        return {
            **metrics,
            **self.totals.trained(groups, self.learner_version, metrics),
            **self.selection.metrics(),
            **self.task_source.metrics(),
            "queue/groups": float(len(self.queue.groups)),
            "queue/in_flight_groups": float(len(self.in_flight)),
            "replay/reused_groups": float(len(self.reused)),
            "replay/groups": float(len(self.reuse.groups)),
        }

    def _drop_stale(self) -> None:
        for group in self.queue.drop_stale(self.learner_version):
            self.ledger.close(group.ids, "stale", "too_old")
            self.changed.set()

    async def _checkpoint(self, step: int) -> None:
        await self.checkpoints.begin(step, self._position, stopping=self.stopping)

    def _position(self) -> str:
        return write_position(self.number, self.task_source.position())

    def _check_books(self) -> None:
        playing = {id for spec in self.in_flight.values() for id in spec.ids}
        waiting = {id for group in (*self.queue.groups, *self.training) for id in group.ids}
        self.ledger.check(playing, waiting)

    async def _end_when_stalled(self) -> None:
        raise RunError(await self.watch.until_stalled())

    async def _end_without_nodes(self) -> None:
        """Raises what the watch over the nodes does, since before there were loops."""
        await asyncio.shield(self.watching)

    async def _end(self, loops: list[asyncio.Task[None]]) -> None:
        """Stop the loops and what they still play; book it as cancelled, and balance the books."""
        self.dispatcher.cancel()
        tasks = [*loops, *self.groups]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for spec in self.in_flight.values():
            self.ledger.close(spec.ids, "cancelled")
        for group in (*self.queue.groups, *self.training):
            self.ledger.close(group.ids, "cancelled")
        self.in_flight, self.queue.groups, self.training = {}, [], []
        self.playing.clear()
        self.ledger.check(set(), set())

    async def _bounded(self, act: Awaitable[T], seconds: float, what: str) -> T:
        try:
            return await within(act, seconds)
        except TimeoutError:
            raise RunError(f"{what}: no end within {seconds:g} s") from None
        except CheckpointError as error:
            raise cause(error) from None
        except RayError as error:
            await self.nodes.explain(error)
            raise RunError(f"{what}: {first_line(error)} (see {self.folder.path}/logs)") from None
