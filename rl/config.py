"""The settings of a run: one frozen tree. Nothing here imports ray, torch or vllm."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator
from pydantic import model_validator as validator

from rl.config_file import read_config
from rl.env_table import EnvTable, anchor_tables
from rl.model_table import ModelTable, check_models
from rl.samples.hacking_config import HackingConfig
from rl.samples.length_shaping import LengthConfig
from rl.stop_config import StopConfig
from rl.tracker_config import NotifyConfig, TrackersConfig, WandbConfig
from rollout.config import EngineConfig, EpisodeConfig, SamplingConfig, Section
from rollout.engine import Sampling
from rollout.format import FormatName
from rollout.scheduler import Limits
from rollout.window import Eviction, Rules
from trainer.config import LearnerConfig, SftConfig
from trainer.families.family import Preset
from trainer.families.registry import FamilyName

Mode = Literal["sync", "one_step", "in_flight", "dora"]
Layout = Literal["disaggregated", "colocated", "elastic"]


class InitConfig(Section):
    """A new policy instead of a checkpoint."""

    family: FamilyName = "longcat_flash"
    preset: Preset = "tiny"


class ModelConfig(Section):
    """The policy to start from: a local folder (`path`), a Hub name (`hub`), or a new one (`init`).

    format: how it writes thoughts and tool calls (`rollout.format`); None: as its chat template does.
    """

    path: str | None = None
    hub: str | None = None
    init: InitConfig | None = None
    format: FormatName | None = None

    @validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if sum(x is not None for x in (self.path, self.hub, self.init)) != 1:
            raise ValueError("give exactly one of path, hub and init")
        return self


class BatchConfig(Section):
    """groups: per learner step. group_size: trajectories of one task.

    filter_zero_variance: leave out groups whose trajectories all got the same reward; they give no
    gradient, and another group takes their place. Of advantages that are relative to the group.
    mask_truncated: leave out trajectories that the length limit cut off, but not those that ran into it in
    a loop; the others' baseline counts them all the same.
    length: rewards for the length of a trajectory that is trained on.
    reuse_ratio: share of a step's groups that were trained on before and that staleness still allows; as many
    new ones fewer are waited for (LongCat-Flash-Thinking, arXiv 2509.18883, section 3.2.2).
    """

    groups: PositiveInt = 16
    group_size: PositiveInt = 8
    length: LengthConfig = LengthConfig()
    filter_zero_variance: bool = True
    mask_truncated: bool = False
    reuse_ratio: float = Field(default=0.0, ge=0, lt=1)

    @property
    def fresh_groups(self) -> int:
        """Number of a step's groups that are trained on for the first time where enough can be reused."""
        return self.groups - round(self.reuse_ratio * self.groups)


class RolloutConfig(Section):
    """controllers: actors that run episodes. hosts: actors that run environments.

    max_in_flight_groups: groups being played at once, however far rollouts may run ahead.
    over_dispatch: groups begun and not yet trained on, in batches (default: 2 in mode dora, else as many
    as staleness allows).
    expected_tokens: what a trajectory is expected to write; engines are then shared out over versions by
    tokens, its context and these, not by the number of trajectories (0; DORA, arXiv 2604.26256, section 4.3).
    rebalance_seconds: longest time between two rebalances of engines over versions. cache_pressure: one is
    due earlier where the trajectories of an engine want this share of its cache. move_slack: so many
    trajectories above the even share stay on an engine rather than have their prefix computed elsewhere.
    """

    controllers: PositiveInt = 1
    hosts: PositiveInt = 1
    max_in_flight_groups: PositiveInt = 32
    over_dispatch: PositiveFloat | None = None
    expected_tokens: int = Field(default=0, ge=0)
    rebalance_seconds: PositiveFloat = 30
    cache_pressure: float = Field(default=0.95, gt=0)
    move_slack: int = Field(default=8, ge=0)


class HeldoutSampling(SamplingConfig):
    """How tokens of held-out episodes are drawn. temperature: 0 always takes the most likely token."""

    temperature: float = Field(default=1.0, ge=0)


class EvalConfig(Section):
    """Held-out evaluation: `tasks` per environment, each played `samples_per_task` times.

    every, seconds: an evaluation beside training after so many steps, and after the first step that ends so
    many seconds after the last one has begun (0: never). share: episodes that it plays at once, of those that
    training may; they come on top. sampling: its own; as in training where the section is missing. env:
    environments that are evaluated only.
    """

    tasks: PositiveInt = 100
    before: bool = True
    after: bool = True
    every: int = Field(default=0, ge=0)
    seconds: float = Field(default=0, ge=0)
    share: float = Field(default=0.25, gt=0, le=1)
    samples_per_task: PositiveInt = 1
    sampling: HeldoutSampling | None = None
    env: tuple[EnvTable, ...] = ()

    @field_validator("env")
    @classmethod
    def _unchosen(cls, env: tuple[EnvTable, ...]) -> tuple[EnvTable, ...]:
        for table in env:
            if table.choice is not None:
                raise ValueError(
                    f"choice is for environments that are trained on; {table.label!r} is evaluated only, "
                    "on the same tasks each time: leave its choice out"
                )
        return env

    @property
    def beside(self) -> bool:
        """True if evaluations go on beside training."""
        return self.every > 0 or self.seconds > 0


class ClusterConfig(Section):
    """address: `local` starts Ray on this machine; `auto` or an address joins a cluster.

    weights_dir: where a version's weights lie on each node that loads it, in a folder of the node's own.
    """

    address: str = "local"
    weights_dir: str = "/dev/shm"


class TimeoutConfig(Section):
    """Seconds after which the run ends with a sentence instead of waiting on.

    stall_seconds: nothing finished and nothing trained. step_seconds: one learner step.
    load_seconds: one engine loading weights, going to sleep or answering at all, or a controller taking
    requests from it. start_seconds: an actor other than an engine. stop_seconds: from SIGTERM or Ctrl-C to
    the checkpoint of the last finished step.
    """

    stall_seconds: PositiveFloat = 600
    step_seconds: PositiveFloat = 1800
    load_seconds: PositiveFloat = 300
    start_seconds: PositiveFloat = 300
    stop_seconds: PositiveFloat = 120


class RunConfig(Section):
    """One run. `mode`: who writes with which policy version, and when weights change.

    sync: a batch per version, rollouts and learner take turns. one_step: rollouts are one version behind.
    in_flight: rollouts run ahead by up to `max_staleness` versions; weights change under running
    requests, each token keeps its version. dora: up to `live_versions` (K) versions at once, each
    trajectory stays on the one it began with, engines change version; staleness at most K.
    `max_staleness` is of in_flight, `live_versions` of dora; the other modes have none of their own.

    `eviction`, of dora: what a full window does with its oldest version when a new one is published: wait
    until it has drained (block), or give up what is left of it and begin those tasks anew (discard).

    `layout`: whose devices the learner steps on. disaggregated: its own. colocated: those of all engines,
    which sleep meanwhile. elastic: those of the engines beyond the first `standalone_engines`, which never
    stop. Deadlines of episodes go on while an engine sleeps.

    `checkpoint_every`: steps between checkpoints (0: of the last step alone). `checkpoint_minutes`: after so
    many minutes without one the next step has one too, which goes when a later one is there (0: never).
    `checkpoint_keep`: how many of the last ones are kept (0: all). `checkpoint_best`: keep the one with the
    highest mean held-out pass rate, and write one of each step that is evaluated (default: where `eval.every`
    or `eval.seconds` is set).
    """

    name: str
    runs_dir: str = "runs"
    seed: int = Field(default=0, ge=0)
    steps: PositiveInt = 100
    mode: Mode = "in_flight"
    max_staleness: int = Field(default=1, ge=0)
    live_versions: int = 2
    eviction: Eviction = "block"
    layout: Layout = "disaggregated"
    standalone_engines: PositiveInt = 1
    checkpoint_every: int = Field(default=0, ge=0)
    checkpoint_minutes: float = Field(default=10, ge=0)
    checkpoint_keep: int = Field(default=0, ge=0)
    checkpoint_best: bool | None = None
    model: ModelConfig
    models: tuple[ModelTable, ...] = ()
    env: tuple[EnvTable, ...] = Field(min_length=1)
    batch: BatchConfig = BatchConfig()
    episode: EpisodeConfig = EpisodeConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    rollout: RolloutConfig = RolloutConfig()
    sft: SftConfig | None = None
    eval: EvalConfig = EvalConfig()
    stop: StopConfig = StopConfig()
    hacking: HackingConfig = HackingConfig()
    cluster: ClusterConfig = ClusterConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    wandb: WandbConfig = WandbConfig()
    trackers: TrackersConfig = TrackersConfig()
    notify: NotifyConfig = NotifyConfig()

    @validator(mode="before")
    @classmethod
    def _longest_completion(cls, given: object) -> object:
        """Where the losses' T_max is missing, it is the most that a policy writes in an episode."""
        if not isinstance(given, dict):
            return given
        learner = given.get("learner", {})
        loss = learner.get("loss", {}) if isinstance(learner, dict) else None
        if not isinstance(loss, dict) or "max_completion_tokens" in loss:
            return given
        try:
            episode = EpisodeConfig.model_validate(given.get("episode", {}))
        except ValidationError:  # said of the episode's own settings
            return given
        loss = {**loss, "max_completion_tokens": episode.longest_completion}
        return {**given, "learner": {**learner, "loss": loss}}

    @validator(mode="before")
    @classmethod
    def _format_of_the_model(cls, given: object) -> object:
        """`episode.tool_format`, as files of older releases have it, is `model.format`.

        Defined behind `_longest_completion`, and so run before it.
        """
        if not isinstance(given, dict):
            return given
        model, episode = given.get("model"), given.get("episode")
        if not isinstance(model, dict) or not isinstance(episode, dict):
            return given
        if "tool_format" not in episode:
            return given
        kept = {key: value for key, value in episode.items() if key != "tool_format"}
        return {**given, "model": {"format": episode["tool_format"], **model}, "episode": kept}

    @validator(mode="after")
    def _mode_and_layout(self) -> "RunConfig":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name {self.name!r} has to be usable as a folder name")
        if self.mode == "in_flight" and self.max_staleness < 1:
            raise ValueError(
                'mode "in_flight" needs max_staleness of at least 1; 0 is mode = "sync"'
            )
        if self.engine.update == "keep_cache" and self.mode != "in_flight":
            raise ValueError(
                'engine.update "keep_cache" is for mode "in_flight", where weights change under running '
                f'requests; in mode "{self.mode}" a trajectory would read a cache of another version'
            )
        if self.mode == "dora" and self.live_versions < 1:
            raise ValueError(
                f'mode "dora" needs live_versions (K) of at least 1, got {self.live_versions}'
            )
        if self.sft is not None and self.sft.ranks > 1 and self.learner.device != "cpu":
            raise ValueError(
                f'sft.ranks ({self.sft.ranks}) shares a cold start on a CPU: learner.device is "cuda"'
            )
        sleeps = self.engine.device == "cpu" or self.engine.vllm.get("enable_sleep_mode", False)
        if self.layout != "disaggregated" and not sleeps:
            raise ValueError(
                f'layout "{self.layout}" needs engine.vllm.enable_sleep_mode = true: engines sleep while '
                "the learner steps"
            )
        if self.layout == "elastic" and self.standalone_engines >= self.engine.count:
            raise ValueError(
                f'layout "elastic" needs an engine that it lends to the learner: standalone_engines is '
                f"{self.standalone_engines}, engine.count is {self.engine.count}"
            )
        return self

    @validator(mode="after")
    def _sizes(self) -> "RunConfig":
        over = self.rollout.over_dispatch
        if over is not None and over < 1:
            raise ValueError(
                f"rollout.over_dispatch ({over:g}) is below one batch: the learner would wait for ever"
            )
        if self.learner.micro_batch_tokens < self.episode.max_tokens:
            raise ValueError(
                f"learner.micro_batch_tokens ({self.learner.micro_batch_tokens}) has to hold a whole "
                f"trajectory, episode.max_tokens ({self.episode.max_tokens})"
            )
        if self.learner.router.replay and not self.engine.capture_routing:
            raise ValueError(
                "learner.router.replay repeats the engine's expert choices: it needs "
                "engine.capture_routing = true"
            )
        if self.engine.compile and self.learner.lora is not None:
            raise ValueError(
                "engine.compile: on a CPU vLLM compiles no engine with adapters (learner.lora); leave it out"
            )
        if self.engine.max_model_len < self.episode.max_tokens:
            raise ValueError(
                f"engine.max_model_len ({self.engine.max_model_len}) has to be at least "
                f"episode.max_tokens ({self.episode.max_tokens})"
            )
        if self.batch.group_size < 2:
            raise ValueError(
                "batch.group_size has to be at least 2: one trajectory has no baseline"
            )
        allowed = (self.rules.max_staleness + 1) * self.batch.fresh_groups
        if allowed < self.batch.groups:
            raise ValueError(
                f"batch.reuse_ratio ({self.batch.reuse_ratio:g}) is too high for a staleness of "
                f"{self.rules.max_staleness}: {allowed} new groups may be on their way, and a step without "
                f"any to reuse takes {self.batch.groups} (batch.groups)"
            )
        return self

    @validator(mode="after")
    def _frozen_models(self) -> "RunConfig":
        asked = {
            f"{key}.{index}.judge.{number}.model": judge.models
            for key, tables in (("env", self.env), ("eval.env", self.eval.env))
            for index, table in enumerate(tables)
            for number, judge in enumerate(table.judge)
        } | {
            f"{key}.{index}.user.model": (table.user.model,)
            for key, tables in (("env", self.env), ("eval.env", self.eval.env))
            for index, table in enumerate(tables)
            if table.user
        }
        check_models(self.models, asked)
        for model in self.models:
            if model.hold_seconds >= self.timeouts.stall_seconds:
                raise ValueError(
                    f"model {model.name!r}: hold_seconds ({model.hold_seconds:g}) has to be below "
                    f"timeouts.stall_seconds ({self.timeouts.stall_seconds:g}): trajectories that are held "
                    "are no stall"
                )
        return self

    @property
    def episode_seconds(self) -> float:
        """The longest that an episode may take until it is judged: its own limit, and its user's time."""
        waited = max((table.user.seconds for table in self.all_envs if table.user), default=0.0)
        return self.episode.max_seconds + waited

    @property
    def group_seconds(self) -> float:
        """The longest that a group may take until its samples are there: its longest episode, and whatever of
        its judges and teachers is away in the meantime, one after the other."""
        judges = {name for table in self.all_envs for one in table.judge for name in one.models}
        teachers = set(self.learner.distill.services()) if self.learner.distill else set[str]()
        asked = [model for model in self.models if model.name in judges | teachers]
        return self.episode_seconds + sum(model.hold_seconds for model in asked)

    @validator(mode="after")
    def _trackers(self) -> "RunConfig":
        if "wandb" in self.trackers.use and not self.wandb.enabled:
            raise ValueError(
                'trackers.use names "wandb", and wandb.enabled is false: leave one out'
            )
        return self

    @validator(mode="after")
    def _environments(self) -> "RunConfig":
        for table in self.env:
            if table.concurrency is not None and table.concurrency < self.batch.group_size:
                raise ValueError(
                    f"environment {table.label!r}: concurrency ({table.concurrency}) has to hold a whole "
                    f"group, batch.group_size ({self.batch.group_size})"
                )
        samples = self.eval.samples_per_task
        for table, group in ((t, self.batch.group_size * (t in self.env)) for t in self.all_envs):
            least = max(samples, (group + samples) * self.eval.beside)
            if table.concurrency is not None and table.concurrency < least:
                beside = (
                    f" beside a group of training, {group}" if self.eval.beside and group else ""
                )
                raise ValueError(
                    f"environment {table.label!r}: concurrency ({table.concurrency}) has to hold a held-out "
                    f"task's episodes, eval.samples_per_task ({samples}){beside}: at least {least}"
                )
        if self.stop.patience and not self.eval.beside:
            raise ValueError(
                f"stop.patience ({self.stop.patience}) counts evaluations beside training, and there are "
                "none: set eval.every or eval.seconds"
            )
        if not self.stop.reads([table.label for table in self.all_envs]):
            known = ("eval/mean_pass_rate", *(f"eval/{t.label}/pass_rate" for t in self.all_envs))
            raise ValueError(
                f"stop.metric {self.stop.metric!r} is none of this run's evaluations; such are "
                f"{', '.join(known)}"
            )
        labels = [table.label for table in self.all_envs]
        for label in labels:
            if label == "all":
                raise ValueError('no environment can be called "all": metrics call the sum so')
            if labels.count(label) > 1:
                raise ValueError(f"two environments are called {label!r}: give one another name")
        return self

    @property
    def all_envs(self) -> tuple[EnvTable, ...]:
        """The environments that are trained on, and those that are evaluated only."""
        return (*self.env, *self.eval.env)

    @property
    def signals(self) -> dict[str, tuple[str, ...]]:
        """The environments whose rewards are watched for hacking, and what each reward is held against."""
        return {table.label: table.held_against for table in self.env if table.watched}

    def sampling_of(self, table: EnvTable, *, train: bool) -> Sampling:
        """Return how tokens of an environment's episodes are drawn, in training or held out.

        What ends a turn in training ends it in held-out episodes too, unless those have texts or tokens of
        their own.
        """
        usual = self.sampling
        if not train and (own := self.eval.sampling) is not None:
            ends = {
                "stop": own.stop or usual.stop,
                "stop_token_ids": own.stop_token_ids or usual.stop_token_ids,
            }
            usual = own.model_copy(update=ends)
        return table.sampling.over(usual)

    def kept(self, concurrency: int) -> int:
        """Instances, of so many of an environment that is trained on, that evaluations beside it may use."""
        if not self.eval.beside:
            return 0
        samples = self.eval.samples_per_task
        room = min(int(self.eval.share * concurrency), concurrency - self.batch.group_size)
        return samples * max(1, room // samples)

    @property
    def keeps_best(self) -> bool:
        """True if the best checkpoint is kept."""
        return self.eval.beside if self.checkpoint_best is None else self.checkpoint_best

    @property
    def rules(self) -> Rules:
        """The mode, as the scheduler knows it."""
        match self.mode:
            case "sync":
                return Rules(live=1, max_staleness=0)
            case "one_step":
                return Rules(live=1, max_staleness=1)
            case "in_flight":
                return Rules(live=1, max_staleness=self.max_staleness, in_place=True)
            case "dora":
                live = self.live_versions
                return Rules(live=live, max_staleness=live, eviction=self.eviction)

    @property
    def limits(self) -> Limits:
        """The run's sizes, as the scheduler knows them."""
        batch, rollout = self.batch, self.rollout
        # DORA's default: a batch being trained on and one being played, fresher than the window allows.
        usual = 2 if self.mode == "dora" else self.rules.max_staleness + 1
        over = rollout.over_dispatch or usual
        room = batch.groups * batch.group_size * (self.rules.max_staleness + 2)
        return Limits(
            batch_groups=batch.fresh_groups,
            group_size=batch.group_size,
            target=round(over * batch.groups) * batch.group_size,
            # vLLM has a queue of its own: an engine takes whatever is sent.
            engine_limit=room,
            slack=rollout.move_slack,
            expected_tokens=rollout.expected_tokens,
            period_seconds=rollout.rebalance_seconds,
            cache_pressure=rollout.cache_pressure,
            max_groups=rollout.max_in_flight_groups,
        )

    def actors_asking(self, resource: Literal["CPU", "GPU"]) -> dict[str, tuple[int, float]]:
        """Who asks Ray for it: how many actors, and how much each."""
        engine, learner = self.engine, self.learner
        if resource == "CPU":
            return {
                "engine": (engine.count, engine.cpus),
                "learner": (learner.ranks, learner.cpus),
                **{f"model {m.name}": (1, m.serve.cpus) for m in self.models},
            }
        return {
            "engine": (engine.count, engine.gpus),
            "learner": (learner.ranks, learner.gpus),
            **{f"model {m.name}": (1, m.serve.gpus) for m in self.models},
        }

    def asked(self, resource: Literal["CPU", "GPU"]) -> float:
        """How much of it all actors ask for."""
        return sum(count * each for count, each in self.actors_asking(resource).values())

    def shared_engines(self, names: Sequence[str]) -> Sequence[str]:
        """Select the engines whose devices the learner uses while it steps."""
        first = {"disaggregated": len(names), "colocated": 0, "elastic": self.standalone_engines}
        return names[first[self.layout] :]

    def seed_of(self, number: int) -> int:
        """`number`, derived from the seed, as a seed that vLLM, torch and numpy take: 0 up to 2**31.

        A larger one is mixed down: numbers that differ stay different but for chance.
        """
        if number < 2**31:
            return number
        digest = hashlib.sha256(str(number).encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs_dir) / self.name


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's settings from a TOML file and overrides. Raises ConfigError."""
    return read_config(path, overrides, RunConfig, anchor_tables)
