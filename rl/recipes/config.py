"""Settings of a recipe: its stages, in order, and which earlier one each begins with."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rl.config_error import ConfigError
from rl.config_file import build, own_configs, read_toml
from trainer.fusion.config import FusionConfig
from trainer.section import Section

RECIPE = "recipe.toml"
# In `set`, a text that is the result of a stage.
OF_STAGE = "stage:"


class Stage(BaseModel):
    """The part that all kinds of stages share. name: of its folder, and by it later stages mean its result, a
    policy's folder."""

    # No `Section`, whose validator of every key leaves none to tell the kinds apart by.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")

    def uses(self) -> Iterator[str]:
        """Yield what may be the name of an earlier stage."""
        yield from ()


class RunStage(Stage):
    """A stage with the settings of a run.

    config: a file of such settings, seen from the recipe's folder, or one of Dorado's own. start: the policy
    to begin with, an earlier stage's or a folder; where it is missing, the settings say. set: values that
    change the settings, as tables or by dotted keys; a text "stage:NAME" is that stage's result.
    """

    config: str
    start: str | None = None
    set: dict[str, Any] = {}

    def uses(self) -> Iterator[str]:
        if self.start is not None:
            yield self.start
        yield from (text.removeprefix(OF_STAGE) for text in _texts(self.set))


class SftStage(RunStage):
    """`dorado sft`: a cold start on demonstrations, or on the chats of `data`, files seen from the recipe's
    folder."""

    kind: Literal["sft"]
    data: tuple[str, ...] = ()


class TrainStage(RunStage):
    """`dorado train`. result: the `last` or the `best` checkpoint."""

    kind: Literal["train"]
    result: Literal["last", "best"] = "last"


class FuseStage(Stage):
    """`dorado model fuse`. models, base: earlier stages, or folders. fusion: how."""

    kind: Literal["fuse"]
    models: tuple[str, ...] = Field(min_length=2)
    base: str | None = None
    fusion: FusionConfig = FusionConfig()

    def uses(self) -> Iterator[str]:
        yield from self.models
        if self.base is not None:
            yield self.base

    @model_validator(mode="after")
    def _makes_sense(self) -> "FuseStage":
        self.fusion.check(len(self.models), base=self.base is not None)
        return self


class CommandStage(Stage):
    """A command of one's own, in the recipe's folder. In its words {out} is the folder of its result, and
    {stage:NAME} that of another stage."""

    kind: Literal["command"]
    command: tuple[str, ...] = Field(min_length=1)

    def uses(self) -> Iterator[str]:
        for word in self.command:
            yield from re.findall(r"\{stage:([^}]*)\}", word)


AnyStage = Annotated[SftStage | TrainStage | FuseStage | CommandStage, Field(discriminator="kind")]


class RecipeConfig(Section):
    """A recipe, e.g. `configs/recipes/quick/recipe.toml`. name: of its folder below `runs_dir`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    runs_dir: str = "runs"
    stage: tuple[AnyStage, ...] = Field(min_length=1)

    @field_validator("stage")
    @classmethod
    def _names_are_of_earlier_stages(cls, stages: tuple[AnyStage, ...]) -> tuple[AnyStage, ...]:
        earlier: list[str] = []
        names = [stage.name for stage in stages]
        for stage in stages:
            if stage.name in earlier:
                raise ValueError(f"two stages are called {stage.name!r}")
            marked = _marked(stage)
            for used in stage.uses():
                if used in earlier or (used not in names and used not in marked):
                    continue
                known = ", ".join(earlier) or "none"
                raise ValueError(
                    f"stage {stage.name!r} uses {used!r}, which is no earlier stage; there are {known}"
                )
            earlier.append(stage.name)
        return stages

    @property
    def folder(self) -> Path:
        """The folder of all stages."""
        return Path(self.runs_dir) / self.name


def _marked(stage: Stage) -> set[str]:
    """The uses that can be no folder: those after "stage:"."""
    if isinstance(stage, RunStage):
        return {text.removeprefix(OF_STAGE) for text in _texts(stage.set)}
    return set(stage.uses()) if isinstance(stage, CommandStage) else set()


def _texts(value: object) -> Iterator[str]:
    """The texts in a value that name a stage."""
    if isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str) and value.startswith(OF_STAGE):
        yield value


def find_recipe(path: Path) -> Path:
    """The file of a recipe: `path`, the recipe.toml in it, or one of Dorado's own, such as recipes/quick.

    Raises ConfigError.
    """
    if path.is_dir():
        path = path / RECIPE
    if path.is_file():
        return path
    named = path.as_posix().removeprefix("configs/").removesuffix(f"/{RECIPE}")
    for name in (named, f"recipes/{named}"):
        if found := own_configs().get(f"{name}/{RECIPE}"):
            return found
    own = [name.removesuffix(f"/{RECIPE}") for name in own_configs() if name.endswith(RECIPE)]
    raise ConfigError(
        f"recipe {path}: there is no such file; Dorado brings {', '.join(sorted(own)) or 'none'}"
    )


def load_recipe(path: Path, changes: Mapping[str, object]) -> RecipeConfig:
    """Read a recipe, with these values in place of its own. Raises ConfigError."""
    return build({**read_toml(path), **changes}, f"recipe {path}", changes, RecipeConfig)
