"""Deadlines that stand still while their act waits for somebody who has a clock of their own.

The seconds of an act are for its work. Where a judge waits for its turn at a few workers, or an environment
for its user's words, the clocks stand still that were begun around that wait: of a tool, of the act, of the
episode. An act may wait for several things at once: its clocks go on when it waits for none of them.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar


class _Clock:
    """A deadline, the clock around it, and how many waits it stands still for."""

    def __init__(self, deadline: asyncio.Timeout, around: "_Clock | None") -> None:
        self.deadline = deadline
        self.around = around
        self.over = False
        self.waits = 0
        self.left = 0.0

    def stop(self) -> None:
        when = self.deadline.when()
        if self.over or (when is None and not self.waits):  # it has ended, or has no limit
            return
        if when is not None:
            self.left = when - asyncio.get_running_loop().time()
            self.deadline.reschedule(None)
        self.waits += 1

    def go_on(self) -> None:
        if self.waits:
            self.waits -= 1
            if not self.waits and not self.over:
                self.deadline.reschedule(asyncio.get_running_loop().time() + self.left)


_clock: ContextVar[_Clock | None] = ContextVar("clock", default=None)


@contextmanager
def counting(deadline: asyncio.Timeout) -> Generator[None]:
    """Make `deadline`, which has been entered, one that stands still in `paused`, as those around it do."""
    clock = _Clock(deadline, _clock.get())
    token = _clock.set(clock)
    try:
        yield
    finally:
        clock.over = True
        _clock.reset(token)


@contextmanager
def paused() -> Generator[None]:
    """Stop the clocks of the act in progress; outside of any it does nothing."""
    clocks = _clocks()
    for clock in clocks:
        clock.stop()
    try:
        yield
    finally:
        for clock in clocks:
            clock.go_on()


def seconds_left() -> float | None:
    """Seconds until the act that asks is over its deadline; None outside of any act, or without a limit."""
    now = asyncio.get_running_loop().time()
    left: list[float] = []
    for clock in _clocks():
        when = clock.deadline.when()
        if clock.over:
            continue
        if clock.waits:
            left.append(clock.left)
        elif when is not None:
            left.append(when - now)
    return min(left, default=None)


def _clocks() -> list[_Clock]:
    found: list[_Clock] = []
    clock = _clock.get()
    while clock is not None:
        found.append(clock)
        clock = clock.around
    return found
