"""Environments, before anything starts: their rewards and experts, and the rows of data sets.

In: settings of environments. Out: nothing, or a ConfigError with one sentence.
"""

import asyncio
import difflib
from collections.abc import Iterator, Sequence

from envs.dataset import DatasetEnv
from envs.env import Env, Split, Task
from reward.answer import check_references, mathematics
from reward.registry import find_judge, names_of
from reward.score import JudgeFault, of_row
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.env_table import EnvTable


def check_rewards(tables: Sequence[EnvTable], key: str = "env") -> None:
    """Something gives each environment a reward, and a weight is that of a reward which is given.

    Raises ConfigError, as far as environments and judges say which rewards they give. key: of the tables.
    """
    for index, table in enumerate(tables):
        own = table.make().reward_names
        judged = [names_of(find_judge(judge)) for judge in table.judges]
        judged += [(judge.label,) for judge in table.judge]
        if own == () and not judged:
            raise ConfigError(
                f"env {table.label!r}: it gives no reward of its own, so a judge has to: judges = "
                '["mathematics"] or ["exact"], say'
            )
        if own is None or None in judged:
            continue
        known = [*own, *(name for names in judged for name in names or ())]
        if twice := [name for name in known if known.count(name) > 1]:
            raise ConfigError(
                f"env {table.label!r}: the reward {twice[0]!r} is given twice, by the environment or its "
                "judges: drop one of them, or give its reward another name"
            )
        if all(table.rewards.get(name) == 0 for name in known):
            raise ConfigError(
                f"{key}.{index}.rewards: every reward of environment {table.label!r} has weight 0 "
                f"({', '.join(known)}), so there is nothing to learn: give one a weight"
            )
        for name in table.rewards:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "drop it, or name the judge"
                raise ConfigError(
                    f"{key}.{index}.rewards.{name}: neither environment {table.label!r} nor a judge gives a "
                    f"reward of this name; given are {', '.join(known)}: {hint}"
                )


def check_experts(config: RunConfig) -> None:
    """A cold start imitates experts; a new policy's tokenizer learns from what they say."""
    if config.sft is None and config.model.init is None:
        return
    section = "[sft]" if config.sft is not None else "model.init"
    for table in config.env:
        if type(table.make()).expert is Env.expert:
            raise ConfigError(
                f"env {table.label!r}: offers no expert, and {section} needs its demonstrations"
            )


def check_rows(table: EnvTable, env: Env, splits: Sequence[Split]) -> None:
    """The judges of a local file's rows are the table's, and the mathematics judge can read what it is to
    compare with, as far as it looks at the rows."""
    if not isinstance(env, DatasetEnv) or env.config.path is None:
        return
    judges = [find_judge(name) for name in table.judges]
    if mathematics not in judges and not env.config.judges_column:
        return
    try:
        for split in splits:
            compared: list[tuple[str, Task]] = []
            for name, task in env.named_tasks(split):
                try:
                    compared += [(name, task)] * (mathematics in of_row(task, judges))
                except JudgeFault as fault:
                    raise ValueError(f"{name}: {fault}") from None
            asyncio.run(check_references(compared))
    except ValueError as error:
        raise ConfigError(f"env {table.label!r}: {error}") from None


def check_splits(config: RunConfig) -> None:
    """Local data sets have rows in each split that is wanted."""
    for table, env in _data_sets(config):
        if env.config.path is not None:
            _check_tasks(table.label, env, _wanted(config, table))


def read_later(config: RunConfig) -> list[str]:
    """Say of which environments the check has read no rows, a sentence each."""
    return [
        f"env {table.label!r}: the rows of {env.config.hub} are on the Hugging Face Hub; `dorado train` "
        "reads and checks them when it begins, this check does not"
        for table, env in _data_sets(config)
        if env.config.hub is not None
    ]


def check_hub_rows(config: RunConfig) -> None:
    """Read the data sets on the Hub, which a check does not download, before anything starts.

    Raises ConfigError.
    """
    for table, env in _data_sets(config):
        if env.config.hub is not None:
            _check_tasks(table.label, env, _wanted(config, table))


def _data_sets(config: RunConfig) -> Iterator[tuple[EnvTable, DatasetEnv]]:
    for table in config.all_envs:
        if isinstance(env := table.make(), DatasetEnv):
            yield table, env


def _wanted(config: RunConfig, table: EnvTable) -> list[Split]:
    evaluated = config.eval.before or config.eval.after or config.eval.beside
    train: list[Split] = ["train"] if table in config.env else []
    return [*train, "heldout"] if evaluated else train


def _check_tasks(label: str, env: Env, splits: Sequence[Split]) -> None:
    for split in splits:
        try:
            next(env.tasks(split, seed=0))
        except ValueError as error:
            raise ConfigError(f"env {label!r}: {error}") from None
