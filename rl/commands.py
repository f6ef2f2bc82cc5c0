"""`Commands`: how every command of `dorado` ends on a bad setting or a missing package.

One sentence on standard error and exit code 2, in place of a traceback. Whatever else a command raises
passes through.
"""

import importlib.util
from typing import Any

import typer
from typer.core import TyperGroup

from rl.config_error import ConfigError

BAD_INPUT = 2
OWN = ("envs", "reward", "rl", "rollout", "trainer")
# Packages that an extra of its own brings, rather than the lock or the extra `gpu`.
EXTRAS = {
    "nicegui": "dashboard",
    "httpx": "interop",
    "jsonschema": "interop",
    "mcp": "interop",
    "websockets": "interop",
}


class Commands(TyperGroup):
    """A group of commands that reports ConfigError and ModuleNotFoundError as bad input."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise _bad_input(str(error)) from None
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not package or package in OWN:
                raise
            raise _bad_input(_missing(package)) from None


def require(*packages: str) -> None:
    """Raise ModuleNotFoundError where one of these is not installed, before anything has begun."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _missing(package: str) -> str:
    """Say how to install a package that a command needs."""
    how = (
        f"pip install 'dorado-rl[{EXTRAS[package]}]'"
        if package in EXTRAS
        else "on a CPU machine `make setup` in a clone of Dorado installs requirements/cpu.lock, "
        "on a GPU machine pip install 'dorado-rl[gpu]' does it"
    )
    return f"this command needs {package}, which is not installed: {how}"


def _bad_input(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(BAD_INPUT)
