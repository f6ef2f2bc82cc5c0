"""The end of a process by its plugin's own hand: `os._exit` and its like raise SystemExit in place of it.

They end a process on the spot, with all episodes in it and without a word. In a process that runs plugins
(`refuse_ends`) they raise what every act's guard has an answer to, in whatever thread. Processes that a
plugin forks end as ever, and so does ours by our own code. Left out: what ends a process below Python, such
as a segmentation fault.
"""

import functools
import inspect
import os
import posix
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from envs.text import shown

# Whose code may end its process, ours and what runs it: there it is meant.
_MAY_END = ("envs", "reward", "rl", "rollout", "trainer", "ray", "vllm")
# The functions of `os` that end a process or put another program in its place.
_ENDS = ("_exit", "abort", "execv", "execve")
_SENDS = ("kill", "killpg")
_DEADLY = {
    getattr(signal, f"SIG{name}")
    for name in ["ABRT", "BUS", "FPE", "HUP", "ILL", "INT", "KILL", "QUIT", "SEGV", "STOP", "TERM"]
}


@contextmanager
def ends_refused() -> Generator[None]:
    """`refuse_ends`, for the time of a command that runs plugins in its own process."""
    before = [(module, name, getattr(module, name)) for module, name in _places()]
    refuse_ends()
    try:
        yield
    finally:
        for module, name, act in before:
            setattr(module, name, act)


def refuse_ends() -> None:
    """Let what code of others calls from now on to end this process raise SystemExit, which names the call.

    Call it before a plugin is imported: one may take `_exit` out of `os`.
    """
    us = os.getpid()
    for module, name in _places():
        setattr(module, name, _refusing(getattr(module, name), name, us))


def _places() -> Iterable[tuple[Any, str]]:
    return (
        *((module, name) for module in (os, posix) for name in (*_ENDS, *_SENDS)),
        (signal, "raise_signal"),
    )


def _refusing(act: Callable[..., Any], name: str, us: int) -> Callable[..., Any]:
    @functools.wraps(act)
    def refusing(*arguments: Any, **named: Any) -> Any:
        here = inspect.currentframe()
        assert here is not None and here.f_back is not None, "CPython has frames"
        caller = str(here.f_back.f_globals.get("__name__", "")).partition(".")[0]
        if os.getpid() == us and caller not in _MAY_END and _ends_us(name, arguments, us):
            said = ", ".join(map(shown, (*arguments, *named.values())))
            raise SystemExit(
                f"it called {name}({said}), which would end the process with all episodes in it: let it "
                "raise in place of exiting"
            )
        return act(*arguments, **named)

    return refusing


def _ends_us(name: str, arguments: tuple[Any, ...], us: int) -> bool:
    """True if the call ends or stops this process."""
    match name, arguments:
        case "kill", (whom, sign):
            return whom in (us, 0, -1) and _is_deadly(sign)
        case "killpg", (whom, sign):
            return whom in (os.getpgrp(), 0) and _is_deadly(sign)
        case "raise_signal", (sign,):
            return _is_deadly(sign)
        case _:
            return name in _ENDS


def _is_deadly(sign: int) -> bool:
    """True unless a handler of ours has an answer to the signal: a run that is interrupted says so."""
    if sign not in _DEADLY:
        return False
    module = str(getattr(signal.getsignal(sign), "__module__", ""))
    return module.partition(".")[0] != "rl"
