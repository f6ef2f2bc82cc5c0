"""A clock that can be set: `time`, `datetime` and what is built on them, for this process, for good.

What is not moved: C code that asks the system itself, such as SQLite's `datetime('now')`, and the
processes that an environment starts.
"""

import ctypes
import datetime
import gc
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """How far this process's clock is ahead; install it before the environment is imported."""

    def __init__(self, seconds: float) -> None:
        self.ahead = seconds

    def advance(self, seconds: float) -> None:
        self.ahead += seconds

    def install(self) -> None:
        """Replace the sources of time."""
        for name in ("time", "monotonic", "perf_counter"):
            setattr(time, name, self._moved(getattr(time, name)))
            setattr(time, f"{name}_ns", self._moved_ns(getattr(time, f"{name}_ns")))
        for name in ("localtime", "gmtime", "ctime"):
            setattr(time, name, _with_default(getattr(time, name)))
        time.strftime = _strftime(time.strftime)
        _move_datetime()

    def _moved(self, read: Callable[[], float]) -> Callable[[], float]:
        return lambda: read() + self.ahead

    def _moved_ns(self, read: Callable[[], int]) -> Callable[[], int]:
        return lambda: read() + int(self.ahead * 1e9)


def _with_default(convert: Callable[..., Any]) -> Callable[..., Any]:
    """`time.localtime()` without an argument asks C for the time; ask the moved clock."""
    return lambda seconds=None: convert(time.time() if seconds is None else seconds)


def _strftime(write: Callable[..., str]) -> Callable[..., str]:
    return lambda form, *moment: write(form, *(moment or (time.localtime(),)))


def _move_datetime() -> None:
    """Let `datetime.now` and `utcnow` ask `time.time`, as `today` does by itself.

    Within the class: C extensions and pydantic know it by identity, so none can take its place.
    """

    def now(cls: type[datetime.datetime], tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return cls.fromtimestamp(time.time(), tz)

    def utcnow(cls: type[datetime.datetime]) -> datetime.datetime:
        return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

    members: Any = gc.get_referents(datetime.datetime.__dict__)[0]
    members.update(now=classmethod(now), utcnow=classmethod(utcnow))
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
