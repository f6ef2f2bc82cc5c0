"""An environment as the kit's command line names it: NAME, module:Class or file.py:Class, and settings."""

import json
from pathlib import Path

from rl.check import make_env
from rl.config import EnvTable
from rl.config_file import ConfigError


def named_env(id: str, config: str = "") -> EnvTable:
    """Its table, after it was made once. config: its settings as JSON. Raises ConfigError."""
    try:
        settings = json.loads(config or "{}")
    except ValueError as error:
        raise ConfigError(f"--config: not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"--config: has to be a JSON object, not {config}")
    file, _, name = id.partition(":")
    if file.endswith(".py"):  # A host may run in another folder.
        id = f"{Path(file).absolute()}:{name}"
    table = EnvTable(id=id, name=name if file.endswith(".py") else "", config=settings)
    make_env(table)
    return table
