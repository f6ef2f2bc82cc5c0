"""Predicts trajectories per second of a run on a measured machine: pure functions of plain data.

The simulator plays the run's mode with the live run's scheduler (`rl.simulator`), at the measured durations.
Engines and learner have the same cores: `Slowed` says how much longer each takes. Left out: evaluations and
checkpoints beside training, groups that are filtered out, lengths that change while the policy learns.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rl.config import Mode, RunConfig
from rl.planning.machine import EngineCost, LearnerCost, Machine
from rl.planning.workload import group_plans
from rl.simulator.config import ClusterSpec, CostSpec, LengthSpec, SimConfig, WorkloadSpec
from rl.simulator.predict import AGAIN, devices, mode_spec
from rl.simulator.simulation import Simulation

WARMUP_STEPS, STEPS = 3, 6
# More engines than this share out a batch into ever smaller ones.
MOST_ENGINES = 4
# Controllers, hosts, Ray and the record take so many times what the episodes take in one process: 5.0 ms of
# CPU a trajectory in a run of the quickstart, where `episode_cpu` was 1.4.
RUN_OVERHEAD = 3.5
# Of the memory that there is, for engines and learner.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Candidate:
    """Settings to choose from."""

    engines: int
    engine: EngineCost
    max_num_seqs: int
    learner: LearnerCost

    def applied(self, config: RunConfig) -> RunConfig:
        """The run with these settings."""
        engine = {
            "count": self.engines,
            "threads": self.engine.threads,
            "compile": self.engine.compiled,
            "max_num_seqs": self.max_num_seqs,
        }
        learner = {
            "micro_batch_tokens": self.learner.micro_batch_tokens,
            "threads": self.learner.threads,
        }
        changed = {
            "engine": config.engine.model_copy(update=engine),
            "learner": config.learner.model_copy(update=learner),
        }
        return config.model_copy(update=changed)


@dataclass(frozen=True)
class Prediction:
    """A candidate, and how fast it would be: trajectories per second, and the time that the learner steps."""

    candidate: Candidate
    mode: Mode
    rate: float
    tokens_per_second: float
    step_seconds: float
    learner_share: float


@dataclass(frozen=True)
class Slowed:
    """How many times as long each takes: engines alone, engines beside a learner, a learner beside them."""

    alone: float
    beside: float
    learner: float


def slowed(machine: Machine, candidate: Candidate) -> Slowed:
    """How the cores are shared.

    Work for more CPUs than there are takes as many times longer. What two at once lose on top of that, by
    shared caches and half cores, was measured with one engine and a learner of one thread, and with two
    engines.
    """
    engine, cpus = candidate.engine, machine.cpus
    episodes = RUN_OVERHEAD * machine.episode_cpu * engine.most.rate
    engines = candidate.engines * (engine.most.cpus + episodes)
    together = engines + candidate.learner.cpus
    measured, plain = machine.sharing, max(1.0, machine.sharing.cpus / cpus)

    def times(demand: float, found: float) -> float:
        return max(1.0, found / plain * max(1.0, demand / cpus))

    several = measured.pair if candidate.engines > 1 else 1.0
    return Slowed(
        alone=times(engines, plain * several),
        beside=times(together, measured.engine * several),
        learner=times(together, measured.learner),
    )


def predict(
    config: RunConfig, machine: Machine, candidate: Candidate, mode: Mode | None = None
) -> Prediction:
    """Predict a run with these settings, in its own mode or another one."""
    run = candidate.applied(config.model_copy(update={"mode": mode or config.mode}))
    spec = mode_spec(run, run.mode)
    limit = min(spec.engine_limit, candidate.max_num_seqs)
    # The second pass for log-probs of the version before is in what was measured.
    factor = 1 / (1 + AGAIN) if spec.max_staleness == 0 and spec.train_factor > 1 else 1.0
    spec = spec.model_copy(update={"engine_limit": limit, "train_factor": factor})
    size = run.batch.group_size
    simulated = SimConfig(
        name=run.name,
        seed=run.seed,
        steps=STEPS,
        warmup_steps=WARMUP_STEPS,
        cluster=ClusterSpec(devices=devices(run)),
        cost=_costs(run, machine, candidate),
        workload=WorkloadSpec(
            groups=run.batch.groups,
            group_size=size,
            # The groups are given.
            prompt_tokens=1,
            length=LengthSpec(median=1, sigma=0, max=1),
        ),
        modes={run.mode: spec},
    )
    simulation = Simulation(simulated, spec, group_plans(machine.groups, run.seed))
    simulation.run()
    begin, steps = simulation.steps[WARMUP_STEPS - 1].end, simulation.steps[WARMUP_STEPS:]
    seconds = steps[-1].end - begin
    rate = len(steps) * run.batch.fresh_groups * size / seconds
    return Prediction(
        candidate=candidate,
        mode=run.mode,
        rate=rate,
        tokens_per_second=rate * machine.written,
        step_seconds=seconds / len(steps),
        learner_share=sum(step.learner_seconds for step in steps) / seconds,
    )


def _costs(run: RunConfig, machine: Machine, candidate: Candidate) -> CostSpec:
    engine, learner, slow = candidate.engine, candidate.learner, slowed(machine, candidate)
    change = engine.change
    weights = 0.0 if change is None else change.staging + change.pause
    if not run.rules.in_place:
        # Nothing is generated until the new version is there.
        weights += machine.publish_seconds
    total, own = devices(run), run.standalone_engines
    lent = {"disaggregated": 1, "colocated": total, "elastic": total - own}[run.layout]
    return CostSpec(
        decode_fixed_ms=max(1e-3, 1e3 * engine.fixed * slow.alone),
        decode_per_sequence_ms=1e3 * engine.beside * slow.alone,
        prefill_tokens_per_second=1 / max(1e-9, engine.reading * slow.alone),
        kv_tokens=max(engine.cache_tokens, run.engine.max_model_len),
        train_fixed_seconds=learner.fixed,
        train_device_seconds_per_token=learner.per_token * lent,
        weights_seconds=weights * slow.alone,
        engine_beside_learner=slow.beside / slow.alone,
        learner_beside_engines=slow.learner,
    )


def candidates(config: RunConfig, machine: Machine) -> Iterator[Candidate]:
    """Settings that fit the machine's memory. Of the learner's micro-batches the fastest one for each number
    of threads, by what a step of the run would take."""
    batch = config.batch
    tokens = machine.trajectory_tokens * batch.groups * batch.group_size
    learners: list[LearnerCost] = []
    for threads in dict.fromkeys(one.threads for one in machine.learners):
        mine = [one for one in machine.learners if one.threads == threads]
        learners.append(min(mine, key=lambda one: one.step_seconds(tokens)))
    least = config.standalone_engines + 1 if config.layout == "elastic" else 1
    counts = sorted({*range(least, min(MOST_ENGINES, machine.cpus) + 1), config.engine.count})
    for count, engine, learner in itertools.product(counts, machine.engines, learners):
        if count * engine.memory + machine.learner_memory < MEMORY_SHARE * machine.memory:
            for seqs in _sequences(config, count):
                yield Candidate(count, engine, seqs, learner)


def _sequences(config: RunConfig, engines: int) -> Sequence[int]:
    """Numbers of sequences worth a try: as many as an engine can get, half of them, and the run's own."""
    limits = config.limits
    most = min(limits.max_groups * limits.group_size, limits.target)
    each = -(-most // engines)
    return sorted({max(1, each // 2), each, config.engine.max_num_seqs})


def own_candidate(config: RunConfig, machine: Machine) -> Candidate | None:
    """The run's own settings; None where they were not measured."""
    threads = config.learner.threads or machine.cpus
    engine, size = config.engine, config.learner.micro_batch_tokens
    engines = [
        e for e in machine.engines if (e.threads, e.compiled) == (engine.threads, engine.compile)
    ]
    learners = [
        one for one in machine.learners if (one.threads, one.micro_batch_tokens) == (threads, size)
    ]
    if not engines or not learners:
        return None
    return Candidate(engine.count, engines[0], engine.max_num_seqs, learners[0])
