"""`Commands`: how every command of `dorado` ends on a bad setting, a missing package or a signal.

One sentence on standard error, in place of a traceback, and exit code 2, or 130 after Ctrl-C, SIGTERM or
SIGHUP. Whatever else a command raises passes through.
"""

import difflib
import importlib.util
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rl.config_error import ConfigError

BAD_INPUT, INTERRUPTED = 2, 130
# What asks a command to end: Ctrl-C, a scheduler or `kill`, a terminal that was closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OWN = ("envs", "reward", "rl", "rollout", "trainer")
# Where the CPU build of torch is, which PyPI does not have.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Packages that an extra of its own brings, rather than the lock or the extras `cpu` and `gpu`.
EXTRAS = {
    "nicegui": "dashboard",
    "httpx": "interop",
    "jsonschema": "interop",
    "mcp": "interop",
    "websockets": "interop",
}


class Commands(TyperGroup):
    """A group of commands that reports ConfigError and ModuleNotFoundError as bad input, and a signal."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with interruptible():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except ConfigError as error:
            raise _bad_input(str(error)) from None
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not package or package in OWN:
                raise
            raise _bad_input(_missing(package)) from None


class CommandWithSettings(TyperCommand):
    """A command that takes any setting as an option, so that a misspelt option of its own looks like one."""

    def invoke(self, ctx: Any) -> Any:
        """Raises ConfigError where an option is nearly one of the command's, and is no setting."""
        own = [name for option in self.params for name in option.opts if name.startswith("--")]
        for given in ctx.args:
            name = given.partition("=")[0]
            if not re.match(r"-{1,2}[A-Za-z][^.]*$", name):
                continue
            if (meant := _meant(name, own)) and _bare(name) not in map(_bare, self.settings()):
                raise ConfigError(f"command line: there is no option {name}; did you mean {meant}?")
        return super().invoke(ctx)

    def settings(self) -> Iterable[str]:
        """Names of the settings that it takes, as far as they could be taken for a misspelt option."""
        return ()


def _meant(name: str, options: Sequence[str]) -> str | None:
    bare = [_bare(one) for one in options]
    close = difflib.get_close_matches(_bare(name), bare, n=1, cutoff=0.8)
    return next((one for one in options if _bare(one) in close), None)


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def on_signals(act: Callable[[], object]) -> None:
    """Have `act()` called, in the main thread, on each of SIGNALS that this process does not ignore."""

    def handle(number: int, frame: FrameType | None) -> None:
        act()

    for number in SIGNALS:
        # One that was ignored from the beginning (`nohup`) stays so.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def ignore_signals() -> None:
    """Hear no signal any more: what still has to end is ended whole, within its own deadlines."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Generator[None]:
    """Have every signal raise KeyboardInterrupt in the main thread, until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    on_signals(interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt() -> None:
    """Raise KeyboardInterrupt."""
    raise KeyboardInterrupt


def require(*packages: str) -> None:
    """Raise ModuleNotFoundError where one of these is not installed, before anything has begun."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def not_here(*packages: str) -> str:
    """The sentence that `require` would end with; "" where all of them are installed."""
    try:
        require(*packages)
    except ModuleNotFoundError as error:
        return _missing((error.name or "").partition(".")[0])
    return ""


def _missing(package: str) -> str:
    """Say how to install a package that a command needs."""
    how = (
        f"pip install 'dorado-rl[{EXTRAS[package]}]'"
        if package in EXTRAS
        else f"on a CPU machine pip install 'dorado-rl[cpu]' --extra-index-url {CPU_INDEX}, or `make setup` "
        "in a clone of Dorado; on a GPU machine pip install 'dorado-rl[gpu]'"
    )
    return f"this command needs {package}, which is not installed: {how}"


def _bad_input(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(BAD_INPUT)
