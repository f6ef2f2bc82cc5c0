"""The judges of `[[env.judge]]`, bound to the frozen models that they ask, and the models that users ask."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from envs.chat_model import ChatModel
from envs.dataset import ROW_JUDGES, DatasetEnv
from envs.env import Split
from envs.model_user import user_prompt
from envs.prompt import UnknownPrompt
from envs.settings import BadSettings
from reward.judges.prompt import find_prompt
from reward.judges.reward_model import RewardModelSettings
from reward.model_judge import (
    SCORED,
    SHIPPED,
    JudgeSettings,
    ModelJudge,
    bound,
    check_settings,
    find_model_judge,
)
from reward.registry import GroupJudge, Judge, UnknownJudge
from rl.config_error import ConfigError
from rl.env_table import EnvTable, JudgeTable
from rl.model_table import ModelTable
from rl.plugin_check import Doing, EnvLook, answers
from trainer.reward_heads import read_heads


@dataclass(frozen=True)
class Judges:
    """The judges of single trajectories, and those of whole groups."""

    each: tuple[Judge, ...] = ()
    groups: tuple[GroupJudge, ...] = ()


def judges_of(tables: Sequence[JudgeTable], models: Mapping[str, ChatModel]) -> Judges:
    """The judges of an environment, whose tables have been checked."""
    each: list[Judge] = []
    groups: list[GroupJudge] = []
    for table in tables:
        judge = find_model_judge(table.id)
        act = bound(judge, table.label, [models[name] for name in table.models], table.config)
        if judge.group:
            groups.append(cast(GroupJudge, act))
        else:
            each.append(cast(Judge, act))
    return Judges(tuple(each), tuple(groups))


def asked_models(tables: Sequence[EnvTable], models: Sequence[ModelTable]) -> list[ModelTable]:
    """Those of the models that judges and users of these environments ask."""
    asked = {name for table in tables for judge in table.judge for name in judge.models}
    asked |= {table.user.model for table in tables if table.user}
    return [model for model in models if model.name in asked]


def check_user(table: EnvTable, key: str, models: Sequence[ModelTable]) -> None:
    """Raise ConfigError where a table's user cannot be played: the environment has none, or the model, or the
    prompt. key: of the table."""
    if table.user is None:
        return
    if not table.make().has_user:
        raise ConfigError(
            f"{key}.user: env {table.label!r} has no user with these settings: leave it out, or set what "
            "gives it one (config.user = true, of orders and desk)"
        )
    if table.user.model not in (names := [model.name for model in models if model.use == "chat"]):
        raise ConfigError(
            f"{key}.user.model: {table.user.model!r} is none of the [[models]] of use 'chat'; such are "
            f"{', '.join(names) or 'none'}"
        )
    try:
        user_prompt(table.user.prompt)
    except UnknownPrompt as error:
        raise ConfigError(f"{key}.user.prompt: {error}") from None


def check_judge(table: JudgeTable, key: str, models: Sequence[ModelTable]) -> ModelJudge:
    """The judge of a table, once all that it says is right. key: of the table. models: that there are. Raises
    ConfigError."""
    try:
        judge = find_model_judge(table.id)
    except UnknownJudge as error:
        raise ConfigError(f"{key}.id: {error}") from None
    if judge.asks and not table.models:
        raise ConfigError(
            f"{key}.model: judge {table.id!r} asks a model: give the name of one of [[models]]"
        )
    if not judge.asks and table.models:
        raise ConfigError(f"{key}.model: judge {table.id!r} asks no model: leave it out")
    wanted = "reward" if table.id in SCORED else "chat"
    for model in models if table.id in SHIPPED else ():
        if model.name in table.models and model.use != wanted:
            raise ConfigError(
                f"{key}.model: judge {table.id!r} needs a model of use {wanted!r}, and {model.name!r} is "
                f"one of use {model.use!r}"
            )
    try:
        settings = check_settings(judge, table.config)
    except BadSettings as error:
        raise ConfigError(f"{key}.{error}") from None
    if table.id in SHIPPED and settings is not None and settings.prompt:
        try:
            find_prompt(table.id, settings.prompt)
        except UnknownPrompt as error:
            raise ConfigError(f"{key}.config.prompt: {error}") from None
    if table.id in SCORED:
        _check_weights(table, key, models)
    return judge


@dataclass(frozen=True)
class FirstTaskLook(EnvLook):
    """Draws the first task of a split, and has the judges look at it that need something of a task."""

    key: str
    split: Split

    def look(self, doing: Doing) -> str:
        """Raises ConfigError where the task has not what a judge needs."""
        doing("drawing its first task")
        try:
            env = self.table.make()
            if isinstance(env, DatasetEnv) and env.config.hub is not None:
                return ""
            task = next(iter(env.tasks(self.split, 0)), None)
        except Exception:  # an author's code: the run says what is wrong with it
            return ""
        of_row = task.data.get(ROW_JUDGES) if task else None
        for number, label, settings in _of_a_task(self.table):
            if task is None or (isinstance(of_row, list) and label not in of_row):
                continue
            try:
                settings.check_task(task)
            except ValueError as error:
                raise ConfigError(f"{self.key}.judge.{number}: {error}") from None
        return ""


def check_first_task(table: EnvTable, key: str, split: Split) -> None:
    """Raise ConfigError where the first task of a split has not what a judge needs, or does not come in time.
    key: of the table.

    Rows on the Hub are not read for this, and no task is drawn for judges that need nothing of it.
    """
    if not _of_a_task(table):
        return
    with contextlib.closing(answers([FirstTaskLook(table, key, split)])) as found:
        for one in found:
            if one.bad:
                raise ConfigError(one.bad)


def _of_a_task(table: EnvTable) -> list[tuple[int, str, JudgeSettings]]:
    """Number, label and settings of the judges that need something of a task."""
    return [
        (number, judge.label, settings)
        for number, judge in enumerate(table.judge)
        if (settings := check_settings(find_model_judge(judge.id), judge.config)) is not None
        and type(settings).check_task is not JudgeSettings.check_task
    ]


def own_weights(table: JudgeTable) -> Mapping[str, float]:
    """The weights that a judge gives the heads of its reward models in place of their own, none for most.
    Raises BadSettings, UnknownJudge."""
    settings = check_settings(find_model_judge(table.id), table.config)
    return settings.weights if isinstance(settings, RewardModelSettings) else {}


def _check_weights(table: JudgeTable, key: str, models: Sequence[ModelTable]) -> None:
    """Raise ConfigError where a judge weighs heads that its reward models have not."""
    asked = own_weights(table)
    for model in models:
        if model.name not in table.models:
            continue
        try:
            names = read_heads(Path(model.path)).names if model.path else model.heads
        except (OSError, ValueError) as error:
            raise ConfigError(f"models {model.name!r}: {error}") from None
        if unknown := [name for name in asked if name not in names]:
            raise ConfigError(
                f"{key}.config.weights: the model {model.name!r} has no head {unknown[0]!r}; it has "
                f"{', '.join(names) or 'one, or several that models.heads names'}"
            )
