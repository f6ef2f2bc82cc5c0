"""Settings of a simulation: a cluster, a model's costs, a workload, and the modes to compare.

Costs are inputs: nothing is fitted when a simulation runs, so that another cluster
(`--cluster.devices 128`) is a prediction. `rl.simulator.calibrate` fits the two that a measured
synchronous step determines.
"""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic import model_validator as validator

from rl.config import Layout, Mode
from rollout.config import Section
from rollout.window import Eviction, Rules


class ClusterSpec(Section):
    """devices: all of them. devices_per_engine: of one engine (tensor parallel size)."""

    devices: PositiveInt
    devices_per_engine: PositiveInt = 1

    @validator(mode="after")
    def _whole_engines(self) -> "ClusterSpec":
        if self.devices % self.devices_per_engine:
            raise ValueError(
                f"devices ({self.devices}) has to be a multiple of devices_per_engine "
                f"({self.devices_per_engine})"
            )
        return self


class CostSpec(Section):
    """Costs of work. Decoding, per engine: one token of each of b sequences takes decode_fixed_ms + b *
    decode_per_sequence_ms. prefill_tokens_per_second, kv_tokens (what its cache holds): of one engine.
    Training a batch takes train_fixed_seconds + tokens * train_device_seconds_per_token / devices.
    weights_seconds: an engine takes another version. kv_bytes_per_token, move_bytes_per_second: of a
    cache that moves between engines; 0 bytes per second: caches do not travel, prefixes are computed
    again. engine_beside_learner, learner_beside_engines: how many times as long each takes while the other is
    at work on the same cores.
    """

    decode_fixed_ms: PositiveFloat
    decode_per_sequence_ms: NonNegativeFloat
    prefill_tokens_per_second: PositiveFloat
    kv_tokens: PositiveInt
    train_fixed_seconds: NonNegativeFloat = 0
    train_device_seconds_per_token: NonNegativeFloat
    weights_seconds: NonNegativeFloat = 0
    kv_bytes_per_token: NonNegativeFloat = 0
    move_bytes_per_second: NonNegativeFloat = 0
    engine_beside_learner: PositiveFloat = 1
    learner_beside_engines: PositiveFloat = 1


class LengthSpec(Section):
    """Tokens that the policy writes in one turn: lognormal, cut at `max`."""

    median: PositiveFloat
    sigma: NonNegativeFloat
    max: PositiveInt


class ToolSpec(Section):
    """Seconds that a tool takes: lognormal with this median and 99th percentile."""

    median_seconds: PositiveFloat
    p99_seconds: PositiveFloat


class WorkloadSpec(Section):
    """The workload to play. turns: completions of one trajectory; after each but the last a tool answers,
    with `tool_tokens` more to read. filtered: share of groups that give no gradient and are left out. trace:
    a finished run's folder, whose trajectories are played instead of drawn ones."""

    groups: PositiveInt
    group_size: PositiveInt
    prompt_tokens: PositiveInt
    turns: PositiveInt = 1
    tool_tokens: int = Field(default=0, ge=0)
    length: LengthSpec
    tool: ToolSpec | None = None
    filtered: float = Field(default=0, ge=0, lt=1)
    trace: str | None = None


class ModeSpec(Section):
    """One mode's settings.

    rollout_share: of the devices; with `disaggregated` the engines', with `elastic` the standalone
    group's. over_dispatch: trajectories begun and not yet trained on, in batches. active_per_engine:
    trajectories in progress, per engine of all there are. engine_limit: sequences per
    engine. max_groups: played at once, whatever
    over_dispatch says. train_factor: of the cost of training. The rest: see `rollout.scheduler.Limits`.
    """

    layout: Layout = "colocated"
    rollout_share: float = Field(default=1, gt=0, le=1)
    live: int = 1
    max_staleness: int = Field(default=0, ge=0)
    in_place: bool = False
    eviction: Eviction = "block"
    over_dispatch: PositiveFloat = 1
    active_per_engine: PositiveInt | None = None
    engine_limit: PositiveInt = 256
    slack: int = Field(default=1, ge=0)
    expected_tokens: int = Field(default=0, ge=0)
    period_seconds: PositiveFloat = 60
    cache_pressure: float = Field(default=0.95, gt=0, le=1)
    train_factor: PositiveFloat = 1
    max_groups: PositiveInt = 2**31

    @validator(mode="after")
    def _possible(self) -> "ModeSpec":
        if self.live < 1:
            raise ValueError(f"live (K) is {self.live}; a run needs at least one live version")
        if self.over_dispatch < 1:
            raise ValueError(
                f"over_dispatch ({self.over_dispatch:g}) is below one batch: the learner would wait for "
                "ever"
            )
        if self.layout != "colocated" and self.rollout_share == 1:
            raise ValueError(
                f"rollout_share: layout {self.layout!r} has to leave devices to the learner"
            )
        return self

    @property
    def rules(self) -> Rules:
        """The scheduler's rules of this mode."""
        return Rules(self.live, self.max_staleness, self.in_place, self.eviction)


class MeasuredStep(Section):
    """A measured synchronous step, for `calibrate`: minutes in all, and of them with rollouts alone."""

    step_min: PositiveFloat
    rollout_min: PositiveFloat


class SimConfig(Section):
    """One simulation. steps: learner steps that are reported; warmup_steps: those before."""

    name: str
    seed: int = Field(default=0, ge=0)
    steps: PositiveInt = 5
    warmup_steps: int = Field(default=3, ge=0)
    cluster: ClusterSpec
    cost: CostSpec
    workload: WorkloadSpec
    modes: dict[Mode, ModeSpec] = Field(min_length=1)
    measured: MeasuredStep | None = None
