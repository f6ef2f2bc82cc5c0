"""The deadline of the judge in progress, which stands still while the judge waits for its turn.

A judge's seconds are for its work. Where many answers wait for a few workers, `paused` keeps a right answer
from being given up for the length of the queue. A judge may wait for several things at once: its clock goes
on when it waits for none of them.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class _Clock:
    """A deadline, and how many waits it stands still for."""

    def __init__(self, deadline: asyncio.Timeout) -> None:
        self.deadline = deadline
        self.waits = 0
        self.left = 0.0

    def stop(self) -> None:
        when = self.deadline.when()
        if when is None and not self.waits:  # it has none
            return
        if when is not None:
            self.left = when - asyncio.get_running_loop().time()
            self.deadline.reschedule(None)
        self.waits += 1

    def go_on(self) -> None:
        if self.waits:
            self.waits -= 1
            if not self.waits:
                self.deadline.reschedule(asyncio.get_running_loop().time() + self.left)


_clock: ContextVar[_Clock] = ContextVar("judge_clock")


@contextmanager
def judging(deadline: asyncio.Timeout) -> Iterator[None]:
    """Make `deadline`, which has been entered, that of the judge that is awaited inside."""
    token = _clock.set(_Clock(deadline))
    try:
        yield
    finally:
        _clock.reset(token)


@contextmanager
def paused() -> Iterator[None]:
    """Stop the clock of the judge in progress; outside of any it does nothing."""
    clock = _clock.get(None)
    if clock is None:
        yield
        return
    clock.stop()
    try:
        yield
    finally:
        clock.go_on()
