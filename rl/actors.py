"""The classes that live in Ray actors. Each is a plain class; `rl.cluster` places it.

Engine: one vLLM engine. Controller: plays groups of episodes. LearnerActor: the learner. (Environments
live in `rl.env_hosts`.) Token data goes engine -> controller -> learner, never through the run.
"""

import asyncio
import gc
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
from ray.exceptions import ObjectLostError
from transformers import AutoTokenizer

from reward.registry import find_judge
from reward.score import JudgeFault, score
from rl.config import RunConfig
from rl.engine_pool import EnginePool
from rl.env_hosts import HostPool, HostSession
from rl.group import GroupReport, GroupSpec, member_report
from rl.node_folder import node_folder
from rl.nodes import own_node
from rl.process import log_to
from rl.pulse import IdleTime, Pulse, own_pulse
from rl.resume import POSITION
from rl.run_folder import LearnedWriter, TrajectoryWriter
from rl.samples import Dropped, group_samples
from rl.waiting import PhaseTimes, Waiting, WaitingTable, deadline, worst
from rollout.engine import Completion, Request
from rollout.episode import Episode
from rollout.placement import InProgress
from rollout.renderer import Renderer
from rollout.trajectory import ScoredTrajectory, Trajectory
from trainer.checkpoint_folder import prune
from trainer.sample import TokenScores, TrainSample

# Between two looks at vLLM's own processes.
DEAD_SECONDS = 1.0

T = TypeVar("T")


class Engine:
    """One vLLM engine in an actor of its own."""

    def __init__(
        self,
        name: str,
        checkpoint: str,
        config: RunConfig,
        eos_ids: tuple[int, ...],
        log: str,
        caches: str,
    ) -> None:
        """caches: the folder in whose part of this node requests that move leave their caches, or "" where
        none move."""
        log_to(log)
        self.caches = node_folder(caches, own_node()) if caches else None
        if self.caches:
            self.caches.mkdir(parents=True, exist_ok=True)
        from rollout.vllm_adapter import Adapters
        from rollout.vllm_engine import VllmEngine

        seed = config.seed * 1000 + int(name.rpartition("-")[2])
        lora = config.learner.lora
        adapters = Adapters(lora.rank, lora.alpha, lora.targets) if lora else None
        self.engine = VllmEngine(
            name,
            checkpoint,
            config.engine,
            config.sampling,
            eos_ids,
            seed,
            str(self.caches or ""),
            adapters,
        )
        self.idle = IdleTime()
        # While vLLM is to be alive.
        self.watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run a first request."""
        await self.engine.start()
        self.watching = asyncio.create_task(self._end_when_dead())

    async def _end_when_dead(self) -> None:
        """Without vLLM's own processes this one is of no use; that it ends is what everybody notices."""
        while not self.engine.dead:
            await asyncio.sleep(DEAD_SECONDS)
        self._end()

    def _end(self) -> None:
        print("vLLM has died: this engine ends", file=sys.stderr, flush=True)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os._exit(1)

    async def _done(self, act: Awaitable[T]) -> T:
        """What an act of vLLM's returns. A dead vLLM is no error of the act's, but this engine's end."""
        try:
            return await act
        except Exception:
            if self.engine.dead and self.watching is not None:
                self._end()
            raise

    async def generate(self, request: Request) -> Completion:
        """One turn. A cache that lies on another node is not read."""
        if request.cache and Path(request.cache).parent != self.caches:
            request = replace(request, cache="")
        with self.idle.request():
            return await self._done(self.engine.generate(request))

    async def pulse(self) -> Pulse:
        """That it is there, and when it had no request."""
        return own_pulse(self.idle.take())

    async def drop(self, cache: str) -> None:
        """Remove a cache that this engine left and that no request will bring here."""
        Path(cache).unlink(missing_ok=True)

    async def interrupt(self, ids: Sequence[str]) -> None:
        """End these requests with what they have written."""
        await self.engine.interrupt(ids)

    async def abort(self, ids: Sequence[str]) -> None:
        """End requests that nobody waits for."""
        await self.engine.abort(ids)

    async def stage(self, path: str, version: int) -> float:
        """Make weights ready while requests go on. Returns milliseconds."""
        return await self._done(self.engine.stage(path, version))

    async def load(self, path: str, version: int) -> Any:
        """Change weights; returns `LoadTimes`."""
        return await self._done(self.engine.load(path, version))

    async def sleep(self) -> None:
        """Give up the device; requests in progress wait."""
        await self._done(self.engine.sleep())

    async def wake(self) -> None:
        """Take the device back, and go on."""
        await self._done(self.engine.wake())

    async def shutdown(self) -> None:
        """End vLLM's own processes."""
        if self.watching is not None:
            self.watching.cancel()
            self.watching = None
        self.engine.shutdown()


class Controller:
    """Plays groups of episodes from their first token to their samples."""

    def __init__(
        self,
        name: str,
        config: RunConfig,
        checkpoint: str,
        engines: Sequence[str],
        hosts: Sequence[str],
        namespace: str,
        folder: str,
    ) -> None:
        """Engines and hosts are named, not handed over: Ray cannot start an actor anew whose
        arguments hold handles."""
        log_to(f"{folder}/logs/{name}.log")
        self.name = name
        self.config = config
        self.namespace = namespace
        self.pool = EnginePool(_found(engines, namespace), config.engine.request_seconds)
        self.hosts = HostPool([ray.get_actor(host, namespace) for host in hosts], name)
        self.tables = {table.label: table for table in config.env}
        self.judges = {t.label: [find_judge(j) for j in t.judges] for t in config.env}
        self.renderer = Renderer(checkpoint, config.episode.tool_format)
        self.writer = TrajectoryWriter(Path(folder), name)
        self.episodes: dict[str, tuple[Episode, HostSession]] = {}
        self.times = PhaseTimes()
        self.retries: Counter[str] = Counter()

    async def ready(self) -> None:
        """Answers once the renderer is loaded; what is loaded by now, the collector need not walk again."""
        gc.collect()
        gc.freeze()

    async def pulse(self) -> Pulse:
        """That it is there."""
        return own_pulse()

    async def play(self, spec: GroupSpec) -> tuple[GroupReport, list[TrainSample]]:
        """Play a group. The report is for the run, the samples are for the learner. Raises NotTold."""
        self.pool.check_told()
        start = time.time()
        members = await asyncio.gather(*(self._member(spec, id) for id in spec.ids))
        samples: list[TrainSample] = []
        dropped: list[Dropped] = []
        if spec.train:
            samples, dropped = group_samples(
                members,
                self.config.learner.advantage,
                filter_zero_variance=self.config.batch.filter_zero_variance,
                mask_truncated=self.config.batch.mask_truncated,
            )
        reports = tuple(member_report(m, *self.writer.write(m)) for m in members)
        sample_ids = tuple(s.id for s in samples)
        again, self.pool.prefilled_again = self.pool.prefilled_again, 0
        report = GroupReport(
            spec,
            reports,
            sample_ids,
            tuple(dropped),
            start,
            time.time(),
            prefilled_again=again,
            retries=self.retries.pop(spec.id, 0),
        )
        return report, samples

    async def serve(self, versions: Mapping[str, int | None]) -> None:
        """These engines serve these versions; None: no new turn goes there."""
        new = [name for name in versions if name not in self.pool.engines]
        self.pool.add(_found(new, self.namespace))
        await self.pool.serve({n: v for n, v in versions.items() if n in self.pool.engines})

    async def lose(self, engines: Sequence[str]) -> None:
        """These engines are gone."""
        await self.pool.lose(engines)

    async def leave(self, engines: Sequence[str], moves: Mapping[str, str]) -> None:
        """Take requests away from engines that change version, and move trajectories (id -> engine)."""
        await self.pool.leave(engines, moves)

    async def in_progress(self) -> list[InProgress]:
        """Every trajectory that is bound to a version: where it is."""
        return self.pool.in_progress()

    async def waiting(self, count: int) -> WaitingTable:
        """What the episodes in progress wait for: the `count` most suspicious ones, and all in numbers."""
        now, latency = time.time(), self.times.latency()
        writing = {
            session: (engine, now - self.pool.asked[id])
            for id, (engine, session) in self.pool.running.items()
        }
        rows: list[Waiting] = []
        for episode, session in self.episodes.values():
            clock, env = episode.clock, episode.env
            phase, seconds = clock.current, now - clock.since
            engine, written = writing.get(episode.id, ("", None))
            left, then = deadline(
                phase,
                seconds,
                now - clock.created,
                self.config,
                self.tables[env].deadlines,
                acts=clock.acts,
                written=written,
            )
            place = self.pool.sessions.get(episode.id)
            usual = latency.get((env, phase))
            rows.append(
                Waiting(
                    id=episode.id,
                    env=env,
                    version=place.version if place else None,
                    phase=phase,
                    at=engine if phase in ("generate", "judge") else session.host,
                    seconds=seconds,
                    p99=usual.p99 if usual else None,
                    left=left,
                    then=then,
                )
            )
        counts = Counter((r.env, r.phase) for r in rows)
        return WaitingTable(tuple(worst(rows, count)), counts, latency=latency)

    async def _member(self, spec: GroupSpec, id: str) -> ScoredTrajectory:
        table = self.tables[spec.env]
        session = HostSession(self.hosts, id, table)
        episode = Episode(
            id=id,
            group=spec.id,
            env=spec.env,
            task=spec.task,
            session=session,
            generate=self.pool.generate,
            renderer=self.renderer,
            config=self.config.episode,
        )
        self.episodes[id] = (episode, session)
        self.pool.begin(id, spec.version)
        try:
            trajectory = await episode.run()
            self.pool.end(id)
            self.times.add(spec.env, trajectory.phases)
            with episode.clock.phase("judge"):
                return await self._judged(trajectory)
        finally:
            if session.retries:
                self.retries[spec.id] += session.retries
            del self.episodes[id]
            self.pool.end(id)

    async def _judged(self, trajectory: Trajectory) -> ScoredTrajectory:
        table = self.tables[trajectory.env]
        judges, seconds = self.judges[table.label], table.deadlines.score_seconds
        try:
            return await score(trajectory, judges, table.rewards, seconds=seconds)
        except JudgeFault as error:
            failed = replace(trajectory, stop_reason="judge_fault", fault=str(error))
            return ScoredTrajectory(failed, {}, 0.0)


def _found(engines: Sequence[str], namespace: str) -> dict[str, Any]:
    """Handles by name, of those that are there: to a controller that is started anew, some may be gone."""
    handles: dict[str, Any] = {}
    for name in engines:
        try:
            handles[name] = ray.get_actor(name, namespace)
        except ValueError:
            continue
    return handles


class LearnerActor:
    """The learner in an actor, or one rank of it; samples come as references.

    Its calls come one at a time, but for `pulse`, and `publish` and `record`, which write beside them. Ranks
    are called together, with the same arguments (`rl.learner_ranks`).
    """

    def __init__(
        self, checkpoint: str, config: RunConfig, log: str, folder: str, rank: int = 0
    ) -> None:
        """folder: the run's."""
        log_to(log)
        self.checkpoint = checkpoint
        self.config = config
        self.rank = rank
        if not rank:
            self.learned = LearnedWriter(Path(folder))

    def meeting(self) -> str:
        """host:port at which rank 0 waits for the others."""
        from trainer.parallel import open_store

        alone = self.config.cluster.address == "local"
        self.store = open_store("127.0.0.1" if alone else ray.util.get_node_ip_address())
        return f"{self.store.host}:{self.store.port}"

    def ready(self, meeting: str = "") -> int:
        """Parameter count, once the policy is loaded. meeting: where the ranks meet, if there are several."""
        import torch

        from trainer.learner import Learner
        from trainer.parallel import ALONE, join, reach_store

        config = self.config
        random.seed(config.seed)
        torch.manual_seed(config.seed)
        self.tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        self.dtype = getattr(torch, config.engine.dtype)
        ranks = ALONE
        if meeting:
            ranks = join(
                reach_store(meeting) if self.rank else self.store,
                rank=self.rank,
                count=config.learner.ranks,
                expert_parallel=config.learner.expert_parallel,
                device=config.learner.device,
                seconds=config.timeouts.step_seconds,
            )
        keep = config.rules.max_staleness if config.learner.loss.behaviour == "learner" else 0
        self.learner = Learner(
            self.checkpoint,
            config.learner,
            temperature=config.sampling.temperature,
            keep_versions=keep,
            ranks=ranks,
        )
        self.snapshots: dict[str, dict[str, torch.Tensor]] = {}
        self.unwritten: deque[tuple[int, list[TokenScores]]] = deque()
        return sum(p.numel() for p in self.learner.model.parameters())

    def lost(self, groups: Sequence[Any]) -> list[int]:
        """Which of these groups of samples (as for `step`) are gone with the node that they lay on."""
        gone: list[int] = []
        for index, group in enumerate(groups):
            try:
                ray.get(group)
            except ObjectLostError:
                gone.append(index)
        return gone

    def step(self, groups: Sequence[Any]) -> dict[str, float]:
        """One update on groups of samples (references to lists of `TrainSample`)."""
        samples = [s for group in ray.get(list(groups)) for s in group]
        metrics = self.learner.step(samples)
        self.unwritten.append((self.learner.version, self.learner.token_scores))
        return metrics

    @ray.method(concurrency_group="publish")
    def record(self) -> list[tuple[str, int]]:
        """Write what the last step computed of each token. Returns ids and byte offsets, on rank 0."""
        step, scores = self.unwritten.popleft()
        return [] if self.rank else self.learned.write(step, scores)

    def experts(self) -> tuple[int, list[list[float]]]:
        """Of the last step: how many experts of a layer compute, and the load of each, per layer."""
        experts = self.learner.experts
        return experts.computing if experts else 0, self.learner.expert_loads

    def snapshot(self, path: str) -> float:
        """Copy the present weights, to be written to `path`. Returns milliseconds."""
        start = time.perf_counter()
        self.snapshots[path] = self.learner.snapshot(self.dtype)
        return 1e3 * (time.perf_counter() - start)

    @ray.method(concurrency_group="publish")
    def publish(self, path: str) -> int:
        """Write the copy that is for `path`. Returns bytes, on rank 0, which alone has it."""
        from trainer.weights import write_weights

        weights = self.snapshots.pop(path)
        return 0 if self.rank else write_weights(weights, Path(path))

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> Pulse:
        """That its process is there, whatever it computes."""
        return own_pulse()

    def save(self, folder: str, position: str) -> None:
        """Begin to write a checkpoint, with tokenizer and the run's position; `saved` tells of its end."""

        def beside(model: Path) -> None:
            self.tokenizer.save_pretrained(model)
            (model.parent / POSITION).write_text(position + "\n")

        self.saving = Path(folder)
        self.learner.save_state(self.saving, beside=beside)

    def load(self, folder: str) -> int:
        """Go on from a checkpoint. Returns its version. Raises CheckpointError."""
        self.learner.load_state(Path(folder))
        return self.learner.version

    def saved(self) -> None:
        """Until the checkpoint in progress is whole; then those that are too many are removed."""
        self.learner.wait_saved()
        if self.config.checkpoint_keep and not self.rank:
            prune(self.saving.parent, self.config.checkpoint_keep)
