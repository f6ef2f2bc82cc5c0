"""A clock that can be set: `time`, `datetime` and what is built on them, for this process, for good.

What is not moved: C code that asks the system itself, such as SQLite's `datetime('now')`, and the
processes that an environment starts.
"""

import datetime
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
        datetime.datetime, datetime.date = _dates(self)  # pyright: ignore[reportAttributeAccessIssue]

    def _moved(self, read: Callable[[], float]) -> Callable[[], float]:
        return lambda: read() + self.ahead

    def _moved_ns(self, read: Callable[[], int]) -> Callable[[], int]:
        return lambda: read() + int(self.ahead * 1e9)


def _with_default(convert: Callable[..., Any]) -> Callable[..., Any]:
    """`time.localtime()` without an argument asks C for the time; ask the moved clock."""
    return lambda seconds=None: convert(time.time() if seconds is None else seconds)


def _strftime(write: Callable[..., str]) -> Callable[..., str]:
    return lambda form, *moment: write(form, *(moment or (time.localtime(),)))


def _dates(clock: Clock) -> tuple[type, type]:
    """`datetime` and `date` whose present is the moved clock's; values of the real ones are theirs."""
    real_datetime, real_date = datetime.datetime, datetime.date

    class Real(type):
        """Instances and subclasses of the real class count, so that `isinstance` goes on working."""

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, cls.__mro__[1])

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, cls.__mro__[1])

    def schema(cls: type, source: Any, handler: Callable[[Any], Any]) -> Any:
        """pydantic knows the real classes by identity."""
        return handler(cls.__mro__[1])

    class Datetime(real_datetime, metaclass=Real):
        __get_pydantic_core_schema__ = classmethod(schema)

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return real_datetime.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return real_datetime.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

        @classmethod
        def today(cls) -> Any:
            return cls.now()

    class Date(real_date, metaclass=Real):
        __get_pydantic_core_schema__ = classmethod(schema)

        @classmethod
        def today(cls) -> Any:
            return real_date.fromtimestamp(time.time())

    Datetime.__name__ = Datetime.__qualname__ = "datetime"
    Date.__name__ = Date.__qualname__ = "date"
    return Datetime, Date
