"""`ControllerActor`: plays groups of episodes, from their first token to their training samples.

Tokens go engine -> controller -> learner; the run sees reports only.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envs.process_end import refuse_ends
from reward.registry import GroupJudge, find_judge
from reward.score import JudgeFault, add_group_judge, score
from rl.actors.actor_method import Handle, actor_method, actor_method_pair, find_actor
from rl.actors.engine import EngineActor
from rl.actors.engine_client import EngineClient
from rl.actors.engine_wires import EngineWires
from rl.actors.env_host import EnvHost
from rl.actors.heartbeat import Heartbeat, own_heartbeat
from rl.actors.host_pool import GRACE_SECONDS, HostPool, HostSession
from rl.actors.judge_crash import last_words_to_log
from rl.actors.judge_loop import JudgeLoop
from rl.actors.model_client import PREFIX, ModelClient
from rl.config import RunConfig
from rl.models.judges import judges_of
from rl.models.served_teachers import taught
from rl.nodes.nodes import own_address
from rl.nodes.process import log_to
from rl.record.run_folder import TrajectoryWriter
from rl.record.waiting import PhaseTimes, Waiting, WaitingTable, deadline, worst
from rl.samples.cache_use import CacheUse
from rl.samples.group import GroupReport, GroupSpec, member_report
from rl.samples.length_shaping import shaped
from rl.samples.samples import Dropped, group_samples
from rollout.episode import Episode
from rollout.gateway.agent_episode import AgentEpisode, Gate
from rollout.placement import InProgress
from rollout.renderer import Renderer
from rollout.trajectory import ScoredTrajectory, Trajectory
from trainer.distil_config import SERVED
from trainer.sample import TrainSample

if TYPE_CHECKING:
    from rollout.gateway.server import Gateway


class ControllerActor:
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
        last_words_to_log()
        refuse_ends()
        self.name = name
        self.config = config
        self.namespace = namespace
        self.client = EngineClient(
            _found(engines, namespace), config.engine.request_seconds, EngineWires(name)
        )
        self.hosts = HostPool([find_actor(EnvHost, host, namespace) for host in hosts], name)
        self.tables = {table.label: table for table in config.all_envs}
        models = {table.name: ModelClient(table, namespace) for table in config.models}
        self.models = models
        asked = {t.label: judges_of(t.judge, models) for t in config.all_envs}
        self.judges = {
            t.label: [*map(find_judge, t.judges), *asked[t.label].each] for t in config.all_envs
        }
        distil = config.learner.distill
        services = distil.services() if distil else ()
        self.teachers: Mapping[str | None, ModelClient]
        self.teachers = {f"{SERVED}{name}": models[name] for name in services}
        hold = {table.name: table.hold_seconds for table in config.models}
        self.held = {
            t.label: max((hold[name] for one in t.judge for name in one.models), default=0.0)
            for t in config.all_envs
        }
        self.group_judges = {label: judges.groups for label, judges in asked.items()}
        longest = max(table.deadlines.score_seconds for table in config.all_envs)
        self.judge_loop = JudgeLoop(longest + GRACE_SECONDS)
        self.renderer = Renderer(checkpoint, config.model.format)
        self.renderer.prepare()
        self.writer = TrajectoryWriter(Path(folder), name)
        self.episodes: dict[str, tuple[Episode, HostSession]] = {}
        self.times = PhaseTimes()
        self.retries: Counter[str] = Counter()
        self.gateway: Gateway | None = None

    @actor_method
    async def ready(self) -> None:
        """Answers once the renderer is loaded; what is loaded by now, the collector need not walk again."""
        gc.collect()
        gc.freeze()

    @actor_method
    async def heartbeat(self) -> Heartbeat:
        """Answer that this actor is there, and how much its trajectories hold at each engine."""
        return replace(own_heartbeat(), contexts=self.client.contexts())

    @actor_method_pair
    async def play(self, spec: GroupSpec) -> tuple[GroupReport, list[TrainSample]]:
        """Play a group. The report is for the run, the samples are for the learner. Raises
        EngineMapMissing."""
        self.client.check_engine_map()
        start = time.time()
        members = await asyncio.gather(*(self._member(spec, id) for id in spec.ids))
        for judge in self.group_judges[spec.env]:
            members = await self._group_judged(judge, spec, members)
        samples: list[TrainSample] = []
        dropped: list[Dropped] = []
        if spec.train:
            members = shaped(members, self.config.batch.length)
            samples, dropped = group_samples(
                members,
                self.config.learner.reward_advantage,
                # A teacher has something to say of a group whose rewards are equal.
                filter_zero_variance=self.config.batch.filter_zero_variance
                and self.config.learner.distill is None,
                mask_truncated=self.config.batch.mask_truncated,
                turn_discount=self.config.learner.turn_discount,
            )
            members, samples, faults = await self._taught(members, samples)
            dropped += faults
        watched = spec.train and self.tables[spec.env].watched
        reports = tuple(member_report(m, *self.writer.write(m), watched=watched) for m in members)
        sample_ids = tuple(dict.fromkeys(s.trajectory or s.id for s in samples))
        again, self.client.reprefilled_tokens = self.client.reprefilled_tokens, 0
        use, self.client.cache_use = self.client.cache_use, CacheUse()
        report = GroupReport(
            spec,
            reports,
            sample_ids,
            tuple(dropped),
            start,
            time.time(),
            reprefilled_tokens=again,
            cache_use=use,
            retries=self.retries.pop(spec.id, 0),
        )
        return report, samples

    @actor_method
    async def serve(self, versions: Mapping[str, int | None]) -> None:
        """Note which version each engine serves; None: no new turn goes there."""
        new = [name for name in versions if name not in self.client.engines]
        self.client.add(_found(new, self.namespace))
        await self.client.serve({n: v for n, v in versions.items() if n in self.client.engines})

    @actor_method
    async def lose(self, engines: Sequence[str]) -> None:
        """Forget engines that are gone."""
        await self.client.lose(engines)

    @actor_method
    async def leave(self, engines: Sequence[str], moves: Mapping[str, str]) -> None:
        """Take requests away from engines that change version, and move trajectories (id -> engine)."""
        await self.client.leave(engines, moves)

    @actor_method
    async def in_progress(self) -> list[InProgress]:
        """Every trajectory that is bound to a version: where it is."""
        return self.client.in_progress()

    @actor_method
    async def waiting(self, count: int) -> WaitingTable:
        """Table of what episodes in progress wait for: the `count` most suspicious ones, and all in
        numbers."""
        now, latency = time.time(), self.times.latency()
        writing = {
            session.partition("~")[0]: (engine, now - self.client.asked[id])
            for id, (engine, session) in self.client.running.items()
        }
        rows: list[Waiting] = []
        for episode, session in self.episodes.values():
            clock, env = episode.clock, episode.env
            phase, seconds = clock.current, now - clock.since
            engine, written = writing.get(episode.id, ("", None))
            waited, user = clock.spent("user"), self.tables[env].user
            left, then = deadline(
                phase,
                seconds,
                now - clock.created - waited,
                self.tables[env].deadlines,
                episode_seconds=self.config.episode.max_seconds,
                request_seconds=self.config.engine.request_seconds,
                acts=clock.acts,
                held=self.held[env],
                user_left=user.seconds - waited if user else 0.0,
                written=written,
            )
            at = engine if phase in ("generate", "judge") else session.host
            place = self.client.sessions.get(episode.id)
            usual = latency.get((env, phase))
            rows.append(
                Waiting(
                    id=episode.id,
                    env=env,
                    version=place.version if place else None,
                    phase=phase,
                    at=f"{PREFIX}{user.model}" if user and phase == "user" else at,
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
        # The episode is there before its session's environment asks anything.
        session = HostSession(self.hosts, id, table, lambda request: episode.ask_user(request))
        episode = AgentEpisode(
            id=id,
            group=spec.id,
            env=spec.env,
            task=spec.task,
            session=session,
            generate=self.client.generate,
            renderer=self.renderer,
            config=self.config.episode,
            sampling=self.config.sampling_of(table, train=spec.train),
            user=self.models[table.user.model] if table.user else None,
            user_seconds=table.user.seconds if table.user else 0.0,
            gate=self._gate,
            branched=self.client.branch,
            agent_seconds=table.deadlines.agent_seconds,
        )
        self.episodes[id] = (episode, session)
        self.client.begin(id, spec.version)
        try:
            trajectory = await episode.run()
            self.client.end(id)
            self.times.add(spec.env, trajectory.phases)
            with episode.clock.phase("judge"):
                return await self._judged(trajectory)
        finally:
            if session.retries:
                self.retries[spec.id] += session.retries
            del self.episodes[id]
            self.client.end(id)

    def _gate(self) -> Gate:
        """The server that agents ask, made for the first of them."""
        if self.gateway is None:
            from rollout.gateway.server import Gateway  # no run without agents pays for its import

            self.gateway = Gateway(own_address())
        return self.gateway

    async def _judged(self, trajectory: Trajectory) -> ScoredTrajectory:
        table = self.tables[trajectory.env]
        judges, seconds = self.judges[table.label], table.deadlines.score_seconds
        try:
            act = score(trajectory, judges, table.rewards, seconds=seconds)
            # Of the environment's own rewards there is no more to do than to add them.
            return await (self.judge_loop.run(act) if judges else act)
        except JudgeFault as error:
            return _failed(ScoredTrajectory(trajectory, {}, 0.0), str(error))

    async def _taught(
        self, members: Sequence[ScoredTrajectory], samples: Sequence[TrainSample]
    ) -> tuple[list[ScoredTrajectory], list[TrainSample], list[Dropped]]:
        """Have teachers that are services score the samples; a trajectory that none could is a fault."""
        distil = self.config.learner.distill
        if distil is None or not self.teachers:
            return list(members), list(samples), []
        kept, faults = await taught(samples, lambda env: self.teachers.get(distil.teacher_of(env)))
        told = [
            _failed(m, faults[m.trajectory.id]) if m.trajectory.id in faults else m for m in members
        ]
        return told, kept, [Dropped((id,), "failed", "judge_fault") for id in faults]

    async def _group_judged(
        self, judge: GroupJudge, spec: GroupSpec, members: Sequence[ScoredTrajectory]
    ) -> list[ScoredTrajectory]:
        """Have a judge of whole groups add its rewards; its fault is a fault of each member."""
        table = self.tables[spec.env]
        seconds = table.deadlines.score_seconds
        try:
            act = add_group_judge(judge, members, table.rewards, seconds=seconds)
            return await self.judge_loop.run(act)
        except JudgeFault as error:
            return [_failed(m, str(error)) if m.trajectory.judged else m for m in members]


def _failed(scored: ScoredTrajectory, fault: str) -> ScoredTrajectory:
    trajectory = replace(scored.trajectory, stop_reason="judge_fault", fault=fault)
    return ScoredTrajectory(trajectory, {}, 0.0)


def _found(engines: Sequence[str], namespace: str) -> dict[str, Handle[EngineActor]]:
    """Look up engines by name. Those that are gone are left out: a controller may have been started anew."""
    handles: dict[str, Handle[EngineActor]] = {}
    for name in engines:
        try:
            handles[name] = find_actor(EngineActor, name, namespace)
        except ValueError:
            continue
    return handles
