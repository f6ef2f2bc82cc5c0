"""An environment as `dorado env` names it, with its settings, as a run's config would hold it."""

import json
from collections.abc import Sequence

from envs.message import JsonObject
from envs.registry import anchored, split_file
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.plugin_check import check_plugins
from rl.preflight.settings import with_own_deadlines


def named_env(
    name: str, config: str = "", *, judges: Sequence[str] = (), run: RunConfig | None = None
) -> EnvTable:
    """The table of NAME, module:Name or file.py:Name, looked at before as a run looks at its own.

    config: its settings as JSON. judges: who judge beside it. run: where its table, if it has one, says what
    is not given here. Raises ConfigError.
    """
    file = split_file(name)
    # A host may run in another folder; a table's label is part of names of files.
    id, label = anchored(name, "."), file[1] if file else ""
    there = [one for one in run.env if one.id == id or one.label == name] if run else []
    like = there[0] if there else EnvTable(id=id)
    table = EnvTable(
        id=like.id,
        name=label or (name if like.id != id else ""),
        config=read_settings(config) if config or not there else like.config,
        judges=tuple(judges) or like.judges,
        judge=like.judge,
        user=like.user,
        rewards=like.rewards,
    )
    check_plugins([table])
    return with_own_deadlines(table)


def read_settings(text: str) -> JsonObject:
    """`--config` of the command line. Raises ConfigError."""
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--config: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f'--config: {text} has to be a JSON object, such as {{"difficulty": 2}}')
    return values
