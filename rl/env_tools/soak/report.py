"""`dorado env soak` from its options to what is printed and written."""

import contextlib
import io
import json
import sys
from pathlib import Path

from rich.console import Console

from envs.process_end import ends_refused
from envs.registry import env_names
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.env_tools.named_env import named_env
from rl.env_tools.soak.figures import Figures, Plan, checks, deadlines_toml, result_table
from rl.env_tools.soak.run import SoakError, check_expert, own_ray, soak


@ends_refused()
def soak_and_report(
    name: str,
    config: str,
    plan: Plan,
    *,
    every: bool,
    factor: float,
    write: Path | None,
    as_json: bool,
) -> bool:
    """Soak and print; returns True if all passed. Raises ConfigError before anything has started."""
    console, notes = _console(), Console(file=sys.stderr, highlight=False)
    tables = _all_tables(notes) if every else [_table(name, config)]
    if every and (name or config):
        raise ConfigError("--all takes every installed environment as it is: give no other")
    if write is not None and not write.absolute().parent.is_dir():
        raise ConfigError(f"--write: the folder {write.absolute().parent} does not exist")
    found: list[Figures] = []
    broken: list[str] = []
    try:
        # Ray tells this process's output of each worker that we kill.
        with own_ray(), contextlib.redirect_stdout(io.StringIO()):
            for table in tables:
                try:
                    figures = soak(table, plan, lambda text, t=table: _say(notes, t, text))
                except SoakError as error:
                    if not every:
                        raise
                    broken.append(table.label)
                    notes.print(f"error: {error}", markup=False)
                    continue
                found.append(figures)
                if not as_json:
                    console.print(result_table(figures, factor), "")
    except SoakError as error:
        notes.print(f"error: {error}", markup=False)
        return False
    finally:
        if as_json and found:
            said = [one.as_json(factor) for one in found]
            print(json.dumps(said if every else said[0], indent=1))
    if write is not None:
        write.write_text(deadlines_toml(found, factor), encoding="utf-8")
        notes.print(f"deadlines: {write}", markup=False)
    failed = [one.env for one in found if not all(check.passed for check in checks(one))] + broken
    if every and not as_json:
        console.print(f"{len(tables) - len(failed)} of {len(tables)} passed", *failed, markup=False)
    return not failed


def _table(name: str, config: str) -> EnvTable:
    if not name:
        raise ConfigError("say which environment (NAME, module:Class or file.py:Class), or --all")
    table = named_env(name, config)
    check_expert(table)
    return table


def _all_tables(notes: Console) -> list[EnvTable]:
    found: list[EnvTable] = []
    for name in env_names():
        try:
            found.append(_table(name, ""))
        except ConfigError as error:
            notes.print(f"left out: {error}", markup=False)
    return found


def _say(notes: Console, table: EnvTable, text: str) -> None:
    if notes.is_terminal:
        notes.print(f"{table.label}: {text}", markup=False)


def _console() -> Console:
    """A file has no width of its own."""
    console = Console(file=sys.stdout, highlight=False)
    return console if console.is_terminal else Console(file=sys.stdout, highlight=False, width=110)
