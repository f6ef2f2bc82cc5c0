"""The settings of a run: one frozen tree, read from TOML, changed by `--a.b value`.

Every mistake is a ConfigError whose message is one sentence: file, key, what is wrong, what would be
right. Nothing here imports ray, torch or vllm.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic import model_validator as validator

from rollout.config import EngineConfig, EpisodeConfig, SamplingConfig
from trainer.config import LearnerConfig, SftConfig

Mode = Literal["sync", "in_flight"]


class ConfigError(Exception):
    """A setting that cannot be; the message is one sentence for the user."""


class Section(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InitConfig(Section):
    """A new policy instead of a checkpoint."""

    family: Literal["longcat_flash", "qwen3_moe"] = "longcat_flash"
    preset: Literal["tiny", "small"] = "tiny"


class ModelConfig(Section):
    """The policy to start from: a local folder (`path`), a Hub name (`hub`), or a new one (`init`)."""

    path: str | None = None
    hub: str | None = None
    init: InitConfig | None = None

    @validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if sum(x is not None for x in (self.path, self.hub, self.init)) != 1:
            raise ValueError("give exactly one of path, hub and init")
        return self


class DeadlineConfig(Section):
    """Seconds an environment may take for each act; then it is the environment's fault."""

    reset_seconds: PositiveFloat = 30
    tool_seconds: PositiveFloat = 30
    score_seconds: PositiveFloat = 30
    close_seconds: PositiveFloat = 10


class EnvTable(Section):
    """One environment of the mixture.

    id: entry point name or module:Name. name: how metrics call it (default: the id). weight: share
    of the groups. rewards: weight of each named reward in the total (default: all 1).
    judges: reward functions (name or module:function) besides the environment's own rewards.
    """

    id: str
    name: str = ""
    weight: PositiveFloat = 1
    config: dict[str, Any] = {}
    deadlines: DeadlineConfig = DeadlineConfig()
    rewards: dict[str, float] = {}
    judges: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name that metrics and ledger use."""
        return self.name or self.id


class BatchConfig(Section):
    """groups: per learner step. group_size: trajectories of one task.

    filter_zero_variance: leave out groups whose trajectories all got the same reward; they give no
    gradient, and another group takes their place.
    """

    groups: PositiveInt = 16
    group_size: PositiveInt = 8
    filter_zero_variance: bool = True


class RolloutConfig(Section):
    """controllers: actors that run episodes. hosts: actors that run environments.

    max_in_flight_groups: groups being played at once, however far rollouts may run ahead.
    """

    controllers: PositiveInt = 1
    hosts: PositiveInt = 1
    max_in_flight_groups: PositiveInt = 32


class EvalConfig(Section):
    """Held-out evaluation before and after: `tasks` per environment, each played once."""

    tasks: PositiveInt = 100
    before: bool = True
    after: bool = True


class ClusterConfig(Section):
    """address: `local` starts Ray on this machine; `auto` or an address joins a cluster.

    weights_dir: where the learner leaves weights for the engines; on several nodes a shared folder.
    """

    address: str = "local"
    weights_dir: str = "/dev/shm"


class TimeoutConfig(Section):
    """Seconds after which the run ends with a sentence instead of waiting on.

    stall_seconds: nothing finished and nothing trained. step_seconds: one learner step.
    load_seconds: one engine loading weights. start_seconds: an actor other than an engine.
    """

    stall_seconds: PositiveFloat = 600
    step_seconds: PositiveFloat = 1800
    load_seconds: PositiveFloat = 300
    start_seconds: PositiveFloat = 120


class WandbConfig(Section):
    """Weights & Biases beside the run folder; offline where no key is set."""

    enabled: bool = True
    project: str = "dorado"
    entity: str | None = None


class RunConfig(Section):
    """One run. `mode`: `sync` (staleness 0, whatever max_staleness says) or `in_flight` (rollouts run ahead
    of the learner by up to `max_staleness` versions; weights change under running requests, each token
    keeps its version)."""

    name: str
    runs_dir: str = "runs"
    seed: int = 0
    steps: PositiveInt = 100
    mode: Mode = "in_flight"
    max_staleness: int = Field(default=1, ge=0)
    checkpoint_every: int = Field(default=0, ge=0)
    model: ModelConfig
    env: tuple[EnvTable, ...] = Field(min_length=1)
    batch: BatchConfig = BatchConfig()
    episode: EpisodeConfig = EpisodeConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    rollout: RolloutConfig = RolloutConfig()
    sft: SftConfig | None = None
    eval: EvalConfig = EvalConfig()
    cluster: ClusterConfig = ClusterConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    wandb: WandbConfig = WandbConfig()

    @validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name {self.name!r} has to be usable as a folder name")
        if self.mode == "in_flight" and self.max_staleness < 1:
            raise ValueError(
                'mode "in_flight" needs max_staleness of at least 1; 0 is mode = "sync"'
            )
        if self.learner.row_tokens < self.episode.max_tokens:
            raise ValueError(
                f"learner.row_tokens ({self.learner.row_tokens}) has to hold a whole trajectory, "
                f"episode.max_tokens ({self.episode.max_tokens})"
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
        labels = [table.label for table in self.env]
        for label in labels:
            if label == "all":
                raise ValueError('no environment can be called "all": metrics call the sum so')
            if labels.count(label) > 1:
                raise ValueError(f"two environments are called {label!r}: give one another name")
        return self

    @property
    def staleness_bound(self) -> int:
        """Learner's version minus sample's version may be at most this."""
        return 0 if self.mode == "sync" else self.max_staleness

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs_dir) / self.name


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and apply overrides (`["--learner.optim.lr", "1e-4", "--seed=1"]`).

    Raises ConfigError.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"config {path}: the file {reason}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: not valid TOML: {error}") from None
    given: set[str] = set()
    for key, text in _pairs(overrides):
        given.add(key)
        _set(values, key.split("."), _value(text), key)
    return _build(values, str(path), given)


def _build(values: dict[str, Any], path: str, given: set[str]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        source = "command line" if key in given else f"config {path}"
        where = f"{source}: {key}" if key else source
        raise ConfigError(f"{where}: {_sentence(first, values)}") from None


def _sentence(error: Any, values: dict[str, Any]) -> str:
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        *parents, wrong = error["loc"]
        known = list(_fields_at(parents))
        close = difflib.get_close_matches(str(wrong), known, n=1)
        if close:
            return f"unknown key, did you mean {close[0]!r}?"
        return f"unknown key; known here are {', '.join(known)}"
    if kind == "missing":
        return "this key is required"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {given!r}"


def _fields_at(location: Sequence[str | int]) -> Iterator[str]:
    """Names of the fields of the section at a location such as ("env", 0, "deadlines")."""
    model: Any = RunConfig
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation) or model
    yield from model.model_fields


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(overrides)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"command line: {flag!r} is no override; they look like --steps 10")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"command line: --{key} needs a value")
            text = rest.pop(0)
        yield key.replace("-", "_"), text


def _value(text: str) -> Any:
    """A TOML value where the text is one, else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _set(values: dict[str, Any], keys: list[str], value: Any, full: str) -> None:
    target: Any = values
    for key in keys[:-1]:
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                raise ConfigError(f"command line: --{full}: there is no entry {key!r}")
            target = target[int(key)]
        else:
            target = target.setdefault(key, {})
        if not isinstance(target, dict | list):
            raise ConfigError(f"command line: --{full}: {key!r} is no section")
    if isinstance(target, list):
        raise ConfigError(f"command line: --{full} has to name a key of one entry")
    target[keys[-1]] = value


def usable_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))
