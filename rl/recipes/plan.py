"""The plan of a recipe: for each stage its settings, its command, and a key of everything it depends on.

In: a recipe. Out: planned stages, or a ConfigError that names the stage; nothing is started or written. A
policy that an earlier stage has yet to make is a folder that is not there, so checks are made with the policy
that the first of the stages before it begins with.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rl.config import ModelConfig, RunConfig
from rl.config_error import ConfigError
from rl.config_file import build, find_config, read_toml
from rl.env_table import anchor_tables
from rl.recipes.config import (
    OF_STAGE,
    AnyStage,
    CommandStage,
    FuseStage,
    RecipeConfig,
    RunStage,
    SftStage,
    TrainStage,
)

# In the folder of a run that is a stage.
POLICY = "policy"


@dataclass(frozen=True)
class Planned:
    """A stage that can be run.

    folder: of the stage, in the recipe's. result: of its policy, e.g. runs/quick/orders/policy.
    settings: of a run, else None. command: the words after `dorado`, or all words of a command of one's own.
    export: those of a second command, which makes the policy out of a run; empty for none.
    key: a hash of the stage and of the stages that it uses. model: a policy like the one that it begins with.
    """

    stage: AnyStage
    folder: Path
    result: str
    settings: RunConfig | None
    command: tuple[str, ...]
    export: tuple[str, ...]
    key: str
    model: ModelConfig | None


def plan(recipe: RecipeConfig, file: Path) -> list[Planned]:
    """Plan every stage. Raises ConfigError."""
    done: dict[str, Planned] = {}
    for stage in recipe.stage:
        done[stage.name] = _Planning(recipe, file.parent, done).planned(stage)
    return list(done.values())


@dataclass(frozen=True)
class _Planning:
    recipe: RecipeConfig
    beside: Path
    earlier: Mapping[str, Planned]

    def planned(self, stage: AnyStage) -> Planned:
        folder = self.recipe.folder / stage.name
        settings = self._settings(stage) if isinstance(stage, RunStage) else None
        used = [self.earlier[name] for name in stage.uses() if name in self.earlier]
        own = [
            stage.model_dump(mode="json"),
            None if settings is None else settings.model_dump(mode="json"),
            [one.key for one in used],
        ]
        key = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
        result, export = str(folder), ()
        if isinstance(stage, TrainStage):
            result = str(folder / POLICY)
            best = ("--best",) if stage.result == "best" else ()
            export = ("export", str(folder), result, *best)
        return Planned(
            stage, folder, result, settings, self._command(stage, folder), export, key,
            self._model(stage, settings),
        )  # fmt: skip

    def settings_file(self, stage: AnyStage) -> Path:
        return self.recipe.folder / f"{stage.name}.toml"

    def _result(self, name: str) -> str:
        """The policy that a stage's name or a folder means."""
        return self.earlier[name].result if name in self.earlier else name

    def _settings(self, stage: RunStage) -> RunConfig:
        where = f"stage {stage.name!r}"
        here = self.beside / stage.config
        file = here if here.is_file() else find_config(Path(stage.config))
        values = read_toml(file)
        anchor_tables(values, file.parent)
        changes = self._resolved(copy.deepcopy(stage.set))
        assert isinstance(changes, dict), "made of a dict"
        _merge(values, changes)
        if stage.start is not None:
            values["model"] = {"path": self._result(stage.start)}
            if isinstance(stage, TrainStage):
                values.pop("sft", None)
        values |= {"name": stage.name, "runs_dir": str(self.recipe.folder)}
        settings = build(values, f"{where}, config {file}", (), RunConfig)
        if isinstance(stage, SftStage) and settings.sft is None:
            raise ConfigError(f"{where}: there is no [sft] section in {file}")
        return settings

    def _resolved(self, value: object) -> object:
        """The value with stages' results in place of "stage:NAME"."""
        if isinstance(value, dict):
            return {key: self._resolved(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._resolved(one) for one in value]
        if isinstance(value, str) and value.startswith(OF_STAGE):
            return self._result(value.removeprefix(OF_STAGE))
        return value

    def _command(self, stage: AnyStage, folder: Path) -> tuple[str, ...]:
        if isinstance(stage, TrainStage):
            return ("train", str(self.settings_file(stage)))
        if isinstance(stage, SftStage):
            data = [word for one in stage.data for word in ("--data", self._data(one))]
            return ("sft", str(self.settings_file(stage)), "--out", str(folder), *data)
        if isinstance(stage, FuseStage):
            models = [self._result(one) for one in stage.models]
            base = [] if stage.base is None else ["--base", self._result(stage.base)]
            return ("model", "fuse", str(folder), *models, *base, *_options(stage))
        assert isinstance(stage, CommandStage), "the last of the kinds"
        names = {f"{{stage:{name}}}": one.result for name, one in self.earlier.items()}
        words: list[str] = []
        for word in stage.command:
            for name, result in {**names, "{out}": str(folder)}.items():
                word = word.replace(name, str(Path(result).absolute()))
            words.append(word)
        return tuple(words)

    def _data(self, name: str) -> str:
        here = self.beside / name
        return str(here) if here.exists() else name

    def _model(self, stage: AnyStage, settings: RunConfig | None) -> ModelConfig | None:
        """A policy like the one that the stage begins with, which is there or can be made now."""
        if isinstance(stage, RunStage) and stage.start not in self.earlier:
            return None if settings is None else settings.model
        used = [one for name in stage.uses() if (one := self.earlier.get(name)) is not None]
        return next((one.model for one in used if one.model is not None), None)


def _merge(values: dict[str, object], changes: Mapping[str, object]) -> None:
    """Change values in place: tables key by key, dotted keys as tables, everything else as a whole."""
    for key, change in changes.items():
        first, _, rest = key.partition(".")
        if rest:
            change = {rest: change}
        inner = values.get(first)
        if isinstance(change, dict) and (isinstance(inner, dict) or rest):
            if not isinstance(inner, dict):
                inner = values[first] = {}
            _merge(inner, change)
        else:
            values[first] = change


def _options(stage: FuseStage) -> list[str]:
    """The options of `dorado model fuse`."""
    c = stage.fusion
    given = ["--method", c.method, "--scale", str(c.scale), "--drop", str(c.drop)]
    given += ["--router", str(c.router), "--seed", str(c.seed)]
    given += ["--normalise"] if c.normalise else []
    given += ["--weights", ",".join(map(str, c.weights))] if c.weights else []
    given += ["--density", str(c.density)] if c.density is not None else []
    return given + (["--dtype", c.dtype] if c.dtype is not None else [])
