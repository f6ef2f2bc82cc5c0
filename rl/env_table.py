"""`[[env]]` and `[[eval.env]]`: an environment of a run, its share, deadlines, rewards and curriculum."""

import itertools
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from pydantic import model_validator as validator

from envs.env import Deadlines, Env
from envs.model_user import UserSettings
from envs.registry import BadSettings, UnknownEnv, anchored, make_env, split_file
from envs.rows import SUFFIXES
from envs.text import told
from rl.config_error import ConfigError
from rollout.config import EnvSampling, Section

# Settings of an environment that name files of rows.
DATA_PATHS = ("path", "heldout_path")
# Those of `agent`, whose paths may be folders.
AGENT_PATHS = ("agent", "tasks", "heldout", "verifier")
# Of `aggregate`, the folder of a run or an evaluation.
RECORD_PATHS = ("record",)


class DeadlineConfig(Section):
    """Seconds an environment may take for each act; then it is the environment's fault."""

    reset_seconds: PositiveFloat = 30
    tool_seconds: PositiveFloat = 30
    score_seconds: PositiveFloat = 30
    close_seconds: PositiveFloat = 10
    agent_seconds: PositiveFloat = 300

    @property
    def record(self) -> Deadlines:
        """As sessions take them."""
        return Deadlines(**self.model_dump())


class BreakerConfig(Section):
    """When an environment gets no new groups, and for how long.

    It opens when of the last `episodes` (whole groups, and none that ended more than `window_seconds` ago) at
    least `faults`, and at least this `share`, ended in a fault of the environment or of its host. After
    `cooldown_seconds` one group probes it; each probe that fails doubles that, up to `max_cooldown_seconds`.
    """

    faults: PositiveInt = 8
    share: float = Field(default=0.75, gt=0, le=1)
    episodes: PositiveInt = 16
    window_seconds: PositiveFloat = 60
    cooldown_seconds: PositiveFloat = 10
    max_cooldown_seconds: PositiveFloat = 300


class CurriculumConfig(Section):
    """Difficulty by pass rate, of environments that have difficulties; more groups for hard tasks.

    groups: so many at the present difficulty decide; above raise_at it rises, below lower_at it falls.
    extra_groups: played in addition of a task whose group passed in no more than hard_below of its episodes.
    """

    groups: PositiveInt = 16
    raise_at: float = Field(default=0.75, ge=0, le=1)
    lower_at: float = Field(default=0.25, ge=0, le=1)
    extra_groups: int = Field(default=0, ge=0)
    hard_below: float = Field(default=0.25, ge=0, le=1)

    @validator(mode="after")
    def _apart(self) -> "CurriculumConfig":
        if self.lower_at >= self.raise_at:
            raise ValueError(
                f"lower_at ({self.lower_at:g}) has to be below raise_at ({self.raise_at:g})"
            )
        return self


class NoiseConfig(Section):
    """Noise of training tasks, which rises from `level` to `max_level` as the policy gets robust.

    pair_share of the tasks is played twice, clean and noisy; the level rises when over the last `pairs` of
    them the clean ones passed no more than `gap` more often.
    """

    level: int = Field(default=1, ge=1, le=3)
    max_level: int = Field(default=3, ge=1, le=3)
    pair_share: float = Field(default=0.25, ge=0, le=1)
    pairs: PositiveInt = 16
    gap: float = Field(default=0.05, ge=0, le=1)


class ChoiceConfig(Section):
    """Which of an environment's tasks are played, by a forecast of how often each passes.

    forecast: "beta" counts each task by itself, for tasks that come again; "flgp" learns from tasks that are
    alike, for those that never do. candidates: tasks that are drawn for each that is played. explore: share
    of the tasks that are taken as they come. forget: what an outcome weighs after one more policy version.
    """

    forecast: Literal["beta", "flgp"] = "beta"
    candidates: int = Field(default=8, ge=2, le=1024)
    explore: float = Field(default=0.2, ge=0, lt=1)
    forget: float = Field(default=0.9, gt=0, le=1)


class JudgeTable(Section):
    """One judge with settings, which may ask frozen models (`reward.model_judge`).

    id: a judge that ships (`rubric`, `ranking`, …), or `module:function`. name: of its reward (default: the
    id). model: of `[[models]]`, one or several; several are an ensemble. config: its own settings.
    """

    id: str
    name: str = ""
    model: str | tuple[str, ...] = ""
    config: dict[str, object] = {}

    @property
    def label(self) -> str:
        """The name of its reward."""
        return self.name or self.id.rpartition(":")[2]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it asks."""
        if isinstance(self.model, str):
            return (self.model,) if self.model else ()
        return self.model


class UserTable(Section):
    """The user of an environment's episodes, where a frozen model plays them (`envs.model_user`).

    model: of `[[models]]`, of use "chat". prompt: a version such as "user.v1", or a file; default: the newest
    that ships. temperature, max_tokens: of one text. seconds: that an episode may wait for its user in all;
    its own deadline stands still meanwhile.
    """

    model: str
    prompt: str = ""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: PositiveInt = 256
    seconds: PositiveFloat = 240

    @property
    def record(self) -> UserSettings:
        """As the user takes it."""
        return UserSettings(self.model, self.prompt, self.temperature, self.max_tokens)


class EnvTable(Section):
    """One environment of the mixture.

    id: entry point name, module:Name or file.py:Name. name: how metrics call it (default: the id).
    weight: share of the groups. rewards: weight of each named reward in the total (default: all 1).
    user: the model that plays the user, of an environment that has one (default: a script).
    judges: reward functions (name or module:function) besides the environment's own rewards. judge: those
    with settings, which may ask a model.
    over_sample: times its share of groups that are begun. concurrency: instances at once, over all hosts.
    retries: times that an episode whose host fails before the opening is begun on another one. sampling: how
    its tokens are drawn, where that is not the run's, in training and held out alike. signals: rewards of
    weight 0 that the reward is held against (`[hacking]`; default: all of them where a `judge` is named).
    """

    id: str
    name: str = ""
    weight: PositiveFloat = 1
    config: dict[str, object] = {}
    deadlines: DeadlineConfig = DeadlineConfig()
    rewards: dict[str, float] = {}
    signals: tuple[str, ...] | None = None
    user: UserTable | None = None
    judges: tuple[str, ...] = ()
    judge: tuple[JudgeTable, ...] = ()
    over_sample: float = Field(default=1.0, ge=1)
    concurrency: PositiveInt | None = None
    retries: int = Field(default=1, ge=0)
    sampling: EnvSampling = EnvSampling()
    breaker: BreakerConfig = BreakerConfig()
    curriculum: CurriculumConfig | None = None
    noise: NoiseConfig | None = None
    choice: ChoiceConfig | None = None

    @field_validator("id")
    @classmethod
    def _absolute(cls, id: str) -> str:
        """Every process of the run has to find the same file, wherever it runs."""
        return anchored(id, Path.cwd())

    @validator(mode="after")
    def _signals_do_not_train(self) -> "EnvTable":
        for name in self.signals or ():
            if (weight := self.rewards.get(name, 1.0)) != 0:
                raise ValueError(
                    f"signals: {name!r} trains with the weight {weight:g}, and a reward is no look "
                    f"at itself from outside: set rewards.{name} = 0, or leave it out"
                )
        return self

    @property
    def watched(self) -> bool:
        """True if its reward is watched for hacking."""
        return bool(self.judge or self.signals)

    @property
    def held_against(self) -> tuple[str, ...]:
        """Names of the rewards that its reward is held against."""
        if self.signals is not None:
            return self.signals
        return tuple(name for name, weight in self.rewards.items() if weight == 0)

    @property
    def label(self) -> str:
        """The name that metrics and ledger use; of a file without its folder."""
        file = split_file(self.id)
        return self.name or (f"{file[0].name}:{file[1]}" if file else self.id)

    def make(self) -> Env:
        """A fresh instance of this environment. Raises ConfigError."""
        try:
            return make_env(self.id, self.config)
        except UnknownEnv as error:
            raise ConfigError(f"env.id: {error}") from None
        except BadSettings as error:
            raise ConfigError(f"env {self.label!r}: {error}") from None
        except (Exception, SystemExit) as error:  # its `__init__`, or a check of its settings
            raise ConfigError(f"env {self.label!r}: it cannot be made: {told(error)}") from None


def anchor_tables(values: dict[str, object], folder: Path) -> None:
    """An environment's file, a user's prompt, and the files of a data set are seen from the folder of the
    configuration that names them."""
    evaluated = values.get("eval")
    sections = (values, evaluated if isinstance(evaluated, dict) else {})
    lists = [tables for one in sections if isinstance(tables := one.get("env"), list)]
    _anchor_functions(values, folder)
    for table in itertools.chain(*lists):
        if not isinstance(table, dict):
            continue
        if isinstance(table.get("id"), str):
            table["id"] = anchored(table["id"], folder)
        if isinstance(user := table.get("user"), dict):
            file = folder / str(user.get("prompt", ""))
            user |= {"prompt": os.path.abspath(file)} if file.is_file() else {}
        if isinstance(settings := table.get("config"), dict):
            settings |= _anchored_rows(settings, folder)
            if table.get("id") == "generated":
                settings |= _anchored_worlds(settings, folder)
            if table.get("id") == "aggregate":
                _anchor_original(settings, folder)


def _anchor_functions(values: dict[str, object], folder: Path) -> None:
    """So are the files of a loss, an advantage and a correction of the user's own."""
    learner = values.get("learner")
    if not isinstance(learner, dict):
        return
    for section, keys in (
        (learner, ("advantage",)),
        (learner.get("loss"), ("kind", "correction")),
    ):
        if not isinstance(section, dict):
            continue
        for key in keys:
            if isinstance(name := section.get(key), str):
                section[key] = anchored(name, folder)


def _anchored_rows(settings: dict[str, object], folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for key in DATA_PATHS:
        path = settings.get(key)
        if isinstance(path, list):
            found[key] = [_anchored_file(one, folder) for one in path]
        elif isinstance(path, str):
            found[key] = _anchored_file(path, folder)
    if isinstance(folders := settings.get("paths"), list):  # of `verifiers`
        found["paths"] = [os.path.abspath(folder / one) for one in folders if isinstance(one, str)]
    for key in (*AGENT_PATHS, *RECORD_PATHS):
        if not isinstance(path := settings.get(key), str) or not path:
            continue
        file = split_file(path)
        if (folder / (file[0] if file else path)).exists():
            found[key] = anchored(path, folder) if file else os.path.abspath(folder / path)
    return found


def _anchor_original(settings: dict[str, object], folder: Path) -> None:
    """The environment that another one is about: its file, and the files that its settings name."""
    if isinstance(original := settings.get("of"), str):
        settings["of"] = anchored(original, folder)
    if isinstance(own := settings.get("config"), dict):
        own |= _anchored_rows(own, folder)
        if original == "generated":
            own |= _anchored_worlds(own, folder)


def _anchored_worlds(settings: dict[str, object], folder: Path) -> dict[str, object]:
    """A pack and the files of domains; a domain's name stays as it is."""
    found: dict[str, object] = {}
    if isinstance(pack := settings.get("pack"), str) and pack:
        found["pack"] = os.path.abspath(folder / pack)
    if isinstance(names := settings.get("domains"), list):
        found["domains"] = [
            os.path.abspath(folder / one)
            if isinstance(one, str) and one.endswith((".toml", ".json"))
            else one
            for one in names
        ]
    return found


def _anchored_file(path: object, folder: Path) -> object:
    # Another environment may mean something else by the name.
    if not isinstance(path, str) or Path(path).suffix not in SUFFIXES:
        return path
    here = (folder / path).exists() or not Path(path).exists()
    return os.path.abspath(folder / path) if here else path
