"""An environment as the kit's command line names it, with its settings, as a run's config would hold it."""

from envs.registry import anchored, split_file
from rl.check import with_own_deadlines
from rl.config import EnvTable
from rl.kit.check.run import read_settings


def named_env(name: str, config: str = "") -> EnvTable:
    """The table of NAME, module:Name or file.py:Name, made once to see that it can be.

    config: its settings as JSON. Raises ConfigError.
    """
    file = split_file(name)
    # A host may run in another folder; a table's label is part of names of files.
    table = EnvTable(
        id=anchored(name, "."), name=file[1] if file else "", config=read_settings(config)
    )
    return with_own_deadlines(table)
