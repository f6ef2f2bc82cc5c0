"""A measured machine: its engines, its learner, how the two slow each other, what was played."""

from dataclasses import dataclass
from statistics import fmean

from rl.planning.engine_probe import Change, Replay
from rl.planning.learner_probe import Steps
from rl.planning.workload import Groups
from rl.simulator.run_trace import Trace


@dataclass(frozen=True)
class EngineCost:
    """One kind of engine. Seconds: `fixed` for a step, `beside` more for each sequence in it, `reading` for a
    token of a prompt. memory: bytes of its processes. change: None where it could not be measured."""

    threads: int
    compiled: bool
    start_seconds: float
    cache_tokens: int
    memory: int
    fixed: float
    beside: float
    reading: float
    replays: tuple[Replay, ...]
    change: Change | None

    @property
    def most(self) -> Replay:
        """The replay with the most sequences."""
        return max(self.replays, key=lambda one: one.sequences)

    @property
    def error(self) -> float:
        """By how much of its seconds a replay is off, at most, if the three costs are all there is to it."""
        return max(abs(self._seconds(one) - 1) for one in self.replays)

    def _seconds(self, replay: Replay) -> float:
        """Seconds of a replay's turns by the costs, over the seconds that they took."""
        rows = Trace((), replay.turns, ()).turn_work()
        costs = (self.fixed, self.beside, self.reading)
        expected = sum(sum(c * w for c, w in zip(costs, row, strict=True)) for row, _ in rows)
        return expected / sum(seconds for _, seconds in rows)


@dataclass(frozen=True)
class LearnerCost:
    """A learner of so many threads and tokens in a micro-batch. fixed, per_token: seconds of a step."""

    threads: int
    micro_batch_tokens: int
    fixed: float
    per_token: float
    cpus: float

    def step_seconds(self, tokens: float) -> float:
        """Seconds of a step on so many tokens."""
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True)
class Sharing:
    """An engine and a learner at work side by side: how many times as long each takes, and with how many
    CPUs' worth of work between them.

    pair: how many times as long two engines take side by side, for shared caches and half cores alone; that
    of engine and learner where there was one engine.
    """

    engine: float
    learner: float
    cpus: float
    pair: float


@dataclass(frozen=True)
class Machine:
    """All of it. episode_cpu: CPU seconds of a trajectory outside of engine and learner. by: who played.

    publish_seconds: of writing weights. notes: what was not measured, and why.
    """

    cpus: int
    memory: int
    groups: Groups
    by: str
    episode_cpu: float
    engines: tuple[EngineCost, ...]
    learners: tuple[LearnerCost, ...]
    learner_memory: int
    sharing: Sharing
    publish_seconds: float
    notes: tuple[str, ...]

    @property
    def others(self) -> float:
        """CPUs that other processes kept busy while engines were measured."""
        replays = [replay for engine in self.engines for replay in engine.replays]
        return sum(one.others for one in replays) / sum(one.seconds for one in replays)

    @property
    def trajectory_tokens(self) -> float:
        """Mean tokens of a trajectory."""
        return fmean(one.plan.tokens for group in self.groups for one in group)

    @property
    def turns(self) -> float:
        """Mean turns of a trajectory."""
        return fmean(len(one.turns) for group in self.groups for one in group)

    @property
    def written(self) -> float:
        """Mean tokens that the policy writes in a trajectory."""
        return fmean(sum(t.written for t in one.turns) for group in self.groups for one in group)


def learner_costs(
    threads: int, whole: Steps, half: Steps, others: dict[int, Steps], size: int
) -> list[LearnerCost]:
    """Costs from a step of a batch and one of half of it, with micro-batches of `size`, and of the same batch
    with other sizes."""
    slope = max(0.0, whole.seconds - half.seconds) / max(1, whole.tokens - half.tokens)
    fixed = max(0.0, whole.seconds - slope * whole.tokens)
    # Noise may make of the whole step a fixed cost, which a larger batch would not have.
    fixed = min(fixed, 0.5 * whole.seconds)
    return [
        LearnerCost(threads, one, fixed, max(0.0, steps.seconds - fixed) / steps.tokens, steps.cpus)
        for one, steps in {size: whole, **others}.items()
    ]
