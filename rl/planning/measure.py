"""Measures this machine for a run: what would be played, the learner's steps, engines, both side by side.

About a minute for a tiny policy. Everything runs in probes, one measurement at a time, and they end with this
function, however it ends.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import psutil

from rl.cold_start import ColdStartError, corpus, kept_checkpoint
from rl.config import RunConfig
from rl.config_error import ConfigError
from rl.nodes.cpus import usable_cpus
from rl.planning.engine_probe import Change, EngineProbe, Replay
from rl.planning.learner_probe import LearnerProbe, Steps
from rl.planning.machine import EngineCost, LearnerCost, Machine, Sharing, learner_costs
from rl.planning.probe import Probe, ProbeError
from rl.planning.workload import Groups, limited, tasks_of
from rl.simulator.run_trace import Trace
from trainer.sample import TrainSample

# Of one level of an engine in a round, and of one kind of step; a level's last trajectories come on top.
LEVEL_SECONDS, STEP_SECONDS = 2.0, 2.0
# Engines take turns at each level, in so many rounds: a machine that is shared is now slow, now fast.
ROUNDS = 2
# A few trajectories that tell how many a step of some seconds has.
FIRST_SAMPLES = 16
PLAYED_GROUPS = 24
# For an act of a probe that computes.
ACT_SECONDS = 180.0
Say = Callable[[str], None]
# An engine that has started: its probe; its threads, and if it is compiled; seconds, and its cache's tokens.
Started = tuple[Probe[EngineProbe], tuple[int, bool], tuple[float, int]]


@dataclass
class Measurement:
    """One measurement in progress: its probes' logs and files, and what it could not measure."""

    config: RunConfig
    folder: Path
    say: Say
    deadline: float
    compile: bool
    notes: list[str] = field(default_factory=list)

    def run(self) -> Machine:
        """Measure. Raises ProbeError where an engine or the learner cannot be measured at all."""
        checkpoint, plays = self._policy()
        with ExitStack() as probes:
            learner = probes.enter_context(
                Probe("the learner", self.folder, partial(LearnerProbe, self.config, checkpoint))
            )
            loaded = learner.begin(LearnerProbe.load, self._threads()[0])
            variants = self._first_variants()
            engines = [self._engine(probes, checkpoint, *one) for one in variants]
            starting = [engine.begin(EngineProbe.start) for engine in engines]
            self.say(f"starting {_named(variants)}, and a learner")
            loaded(ACT_SECONDS)
            started = list(self._started(engines, starting, variants))
            if not started:
                raise ProbeError(self.notes[0])
            groups, episode_cpu = self._groups(started[0][0], plays)
            samples = self._samples(learner, groups)
            weights = self.folder / "weights.safetensors"
            publish = learner.ask(ACT_SECONDS, LearnerProbe.publish, weights)
            costs = self._engine_costs(started, groups, weights)
            learners = list(self._learners(learner, samples))
            best = max(range(len(costs)), key=lambda i: costs[i].most.rate)
            pair = self._pair(started, costs, groups)
            sharing = self._sharing(
                started[best][0], costs[best], groups, learner, learners, samples, pair
            )
            memory = _memory(learner)
            costs += self._later(probes, engines, checkpoint, costs[best], groups, weights)
        return Machine(
            cpus=usable_cpus(),
            memory=psutil.virtual_memory().available,
            groups=groups,
            by="the policy" if plays else "the environments' experts",
            episode_cpu=episode_cpu,
            engines=tuple(costs),
            learners=tuple(learners),
            learner_memory=memory,
            sharing=sharing,
            publish_seconds=publish,
            notes=tuple(self.notes),
        )

    def _policy(self) -> tuple[str, bool]:
        """The policy to measure with, and whether the run would start from what it plays like."""
        kept = kept_checkpoint(self.config)
        if kept is not None:
            return kept, True
        checkpoint = self.config.model.path or self.config.model.hub
        if (init := self.config.model.init) is not None:
            from trainer.small.init_model import init_checkpoint

            checkpoint = str(self.folder / "policy")
            init_checkpoint(
                Path(checkpoint),
                family=init.family,
                preset=init.preset,
                corpus=list(corpus(self.config)),
                seed=self.config.seed_of(self.config.seed),
            )
        assert checkpoint is not None, "a run has exactly one source of its policy"
        return checkpoint, self.config.sft is None

    def _threads(self) -> list[int]:
        """Numbers of the learner's threads that are measured, the run's own first."""
        all_cpus = usable_cpus()
        return list(dict.fromkeys((self.config.learner.threads or all_cpus, 1, all_cpus)))

    def _first_variants(self) -> list[tuple[int, bool]]:
        """Engines that are measured: the run's own, and one that is compiled where that one is not, or the
        other way round."""
        own = (self.config.engine.threads, self.config.engine.compile)
        return [own, (own[0], not own[1])] if self.compile or own[1] else [own]

    def _engine(
        self, probes: ExitStack, checkpoint: str, threads: int, compiled: bool
    ) -> Probe[EngineProbe]:
        made = partial(EngineProbe, self.config, checkpoint, threads, compiled=compiled)
        name = _named([(threads, compiled)])
        return probes.enter_context(Probe(name, self.folder, made))

    def _started(
        self,
        engines: Sequence[Probe[EngineProbe]],
        starting: Sequence[Callable[[float], tuple[float, int]]],
        variants: Sequence[tuple[int, bool]],
    ) -> Iterator[Started]:
        """The engines that start; the others are noted."""
        for engine, wait, variant in zip(engines, starting, variants, strict=True):
            try:
                yield engine, variant, wait(self.config.engine.start_seconds)
            except ProbeError as error:
                self.notes.append(str(error))
                engine.close()

    def _groups(self, engine: Probe[EngineProbe], plays: bool) -> tuple[Groups, float]:
        """The groups that are played, and an episode's CPU seconds outside of engine and learner."""
        tasks, at_once = tasks_of(self.config, PLAYED_GROUPS), self._at_once()
        self.say(f"playing {len(tasks)} groups")
        if judges := sorted({one.label for table in self.config.env for one in table.judge}):
            said = (
                f"the judges {', '.join(judges)} are not asked: their time is not in these figures"
            )
            self.notes.append(said)
        try:
            experts, cpu = engine.ask(ACT_SECONDS, EngineProbe.demonstrate, tasks, at_once)
        except ProbeError as error:
            if not plays:
                raise
            self.notes.append(f"an episode's own CPU seconds are not known, and left out: {error}")
            experts, cpu = [], 0.0
        groups = engine.ask(ACT_SECONDS, EngineProbe.play, tasks, at_once) if plays else experts
        if not groups:
            raise ProbeError("no group could be played to its end without a fault")
        return groups, cpu

    def _at_once(self) -> int:
        """Groups at once where one engine has them all: as many as the run plays, and as fit its batch."""
        limits, size = self.config.limits, self.config.batch.group_size
        most = min(
            limits.max_groups, limits.target // size, self.config.engine.max_num_seqs // size
        )
        return max(1, most)

    def _engine_costs(
        self, started: Sequence[Started], groups: Groups, weights: Path
    ) -> list[EngineCost]:
        """Costs of engines, which take turns."""
        full = self._at_once()
        levels = sorted({1, max(1, full // 4), full})
        engines = [engine for engine, *_ in started]
        for engine in engines:  # the first replay has kernels to load
            self.say(f"measuring {engine.name}")
            engine.ask(ACT_SECONDS, EngineProbe.replay, groups, full, 0.0)
        found: dict[str, dict[int, Replay]] = {engine.name: {} for engine in engines}
        for _, level, engine in itertools.product(range(ROUNDS), levels, engines):
            replay = engine.ask(ACT_SECONDS, EngineProbe.replay, groups, level, LEVEL_SECONDS)
            earlier = found[engine.name].get(level)
            found[engine.name][level] = replay if earlier is None else earlier.plus(replay)
        return [
            self._engine_cost(*one, tuple(found[one[0].name].values()), weights) for one in started
        ]

    def _engine_cost(
        self,
        engine: Probe[EngineProbe],
        variant: tuple[int, bool],
        started: tuple[float, int],
        replays: tuple[Replay, ...],
        weights: Path,
    ) -> EngineCost:
        threads, compiled = variant
        turns = tuple(turn for replay in replays for turn in replay.turns)
        fixed, beside, reading = Trace((), turns, ()).decode_costs()
        return EngineCost(
            threads=threads,
            compiled=compiled,
            start_seconds=started[0],
            cache_tokens=started[1],
            memory=_memory(engine),
            fixed=fixed,
            beside=beside,
            reading=reading,
            replays=replays,
            change=self._change(engine, weights),
        )

    def _change(self, engine: Probe[EngineProbe], weights: Path) -> Change | None:
        try:
            return engine.ask(ACT_SECONDS, EngineProbe.change, weights)
        except ProbeError as error:
            self.notes.append(f"a change of weights is not measured: {error}")
            return None

    def _samples(self, learner: Probe[LearnerProbe], groups: Groups) -> list[TrainSample]:
        """A step's samples, or as many of them as some seconds allow."""
        self.say("measuring the learner")
        config = self.config
        every = limited(groups, config.batch.groups * config.batch.group_size)
        if {config.learner.dtype, config.engine.dtype} == {"float32"}:
            every = learner.ask(ACT_SECONDS, LearnerProbe.agreeing, every)
        size = config.learner.micro_batch_tokens
        first = every[:FIRST_SAMPLES]
        steps = learner.ask(ACT_SECONDS, LearnerProbe.steps, first, size, 2, STEP_SECONDS)
        fits = int(STEP_SECONDS * len(first) / steps.seconds)
        return every[: max(len(first), fits)]

    def _learners(
        self, learner: Probe[LearnerProbe], samples: Sequence[TrainSample]
    ) -> Iterator[LearnerCost]:
        size, least = self.config.learner.micro_batch_tokens, self.config.episode.max_tokens
        others = sorted({max(least, size // 2), 2 * size} - {size})
        for threads in self._threads():
            if threads != self._threads()[0]:
                learner.ask(ACT_SECONDS, LearnerProbe.load, threads)

            def ask(some: Sequence[TrainSample], tokens: int, count: int, seconds: float) -> Steps:
                return learner.ask(ACT_SECONDS, LearnerProbe.steps, some, tokens, count, seconds)

            ask(samples, size, 1, 0.0)  # the first has kernels to load
            whole = ask(samples, size, 2, STEP_SECONDS)
            half = ask(samples[: max(1, len(samples) // 2)], size, 2, STEP_SECONDS)
            found = {other: ask(samples, other, 2, STEP_SECONDS) for other in others}
            yield from learner_costs(threads, whole, half, found, size)
            # With other threads the best size is the best again.
            others = [other for other in others if found[other].seconds < whole.seconds]

    def _sharing(
        self,
        engine: Probe[EngineProbe],
        cost: EngineCost,
        groups: Groups,
        learner: Probe[LearnerProbe],
        learners: Sequence[LearnerCost],
        samples: Sequence[TrainSample],
        pair: float | None,
    ) -> Sharing:
        """How engine and learner slow each other down, with one thread of the learner."""
        self.say("measuring both side by side")
        size = self.config.learner.micro_batch_tokens
        one = next(c for c in learners if (c.threads, c.micro_batch_tokens) == (1, size))
        learner.ask(ACT_SECONDS, LearnerProbe.load, 1)
        learner.ask(ACT_SECONDS, LearnerProbe.steps, samples, size, 1, 0.0)
        full, seconds = self._at_once(), 2 * LEVEL_SECONDS
        # Alone once more: what is compared is of the same minute.
        own = learner.ask(ACT_SECONDS, LearnerProbe.mean_seconds, samples, size, STEP_SECONDS)
        alone = engine.ask(ACT_SECONDS, EngineProbe.replay, groups, full, seconds)
        stepping = learner.begin(LearnerProbe.mean_seconds, samples, size, 1.5 * seconds)
        replay = engine.ask(ACT_SECONDS, EngineProbe.replay, groups, full, seconds)
        beside = stepping(ACT_SECONDS)
        slower, cpus = max(1.0, alone.rate / replay.rate), cost.most.cpus + one.cpus
        return Sharing(
            engine=slower,
            learner=max(1.0, beside / own),
            cpus=cpus,
            pair=slower / max(1.0, cpus / usable_cpus()) if pair is None else pair,
        )

    def _pair(
        self, started: Sequence[Started], costs: Sequence[EngineCost], groups: Groups
    ) -> float | None:
        """How many times as long two engines take side by side, beyond what a lack of CPUs explains; None
        where one alone has started."""
        if len(started) < 2:
            return None
        self.say("measuring two engines side by side")
        (first, *_), (second, *_) = started[:2]
        full = self._at_once()
        writing = first.begin(EngineProbe.replay, groups, full, LEVEL_SECONDS)
        other = second.ask(ACT_SECONDS, EngineProbe.replay, groups, full, LEVEL_SECONDS)
        together = (writing(ACT_SECONDS), other)
        alone = [cost.most for cost in costs[:2]]
        times = fmean(a.rate / t.rate for a, t in zip(alone, together, strict=True))
        return max(1.0, times / max(1.0, sum(one.cpus for one in alone) / usable_cpus()))

    def _later(
        self,
        probes: ExitStack,
        engines: Sequence[Probe[EngineProbe]],
        checkpoint: str,
        best: EngineCost,
        groups: Groups,
        weights: Path,
    ) -> list[EngineCost]:
        """An engine with another number of threads, where there is time for one."""
        for engine in engines:
            engine.close()
        cpus = usable_cpus()
        threads = next((n for n in (max(2, cpus // 2), 1) if n not in (best.threads,)), 1)
        if threads > cpus or threads == best.threads:
            return []
        left = self.deadline - time.monotonic()
        what = _named([(threads, best.compiled)])
        if left < best.start_seconds:
            self.notes.append(f"{what} is not measured, for the time: --seconds has more of it")
            return []
        self.say(f"starting {what}")
        engine = self._engine(probes, checkpoint, threads, best.compiled)
        [*started] = self._started(
            [engine], [engine.begin(EngineProbe.start)], [(threads, best.compiled)]
        )
        return self._engine_costs(started, groups, weights)


def _named(variants: Sequence[tuple[int, bool]]) -> str:
    kinds = [
        f"{'a compiled' if c else 'an eager'} engine of {t} thread{'s'[: t > 1]}"
        for t, c in variants
    ]
    return " and ".join(kinds)


def _memory(probe: Probe[EngineProbe] | Probe[LearnerProbe]) -> int:
    """Bytes that a probe's processes hold."""
    process = psutil.Process(probe.process.pid)
    every = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in every)


def measure(config: RunConfig, say: Say, *, seconds: float, compile: bool) -> Machine:
    """Measure this machine for a run. Raises ConfigError where that cannot be done.

    seconds: after which no further engine is started. compile: try a compiled engine where the run's own is
    not.
    """
    with tempfile.TemporaryDirectory(prefix="dorado-plan-") as folder:
        deadline = time.monotonic() + seconds
        try:
            return Measurement(config, Path(folder), say, deadline, compile).run()
        except (ProbeError, ColdStartError) as error:
            raise ConfigError(f"plan --here: {error}") from None
