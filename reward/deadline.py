"""The deadline of the judge in progress, which stands still while the judge waits for its turn.

A judge's seconds are for its work. Where many answers wait for a few workers, `paused` keeps a right answer
from being given up for the length of the queue.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[asyncio.Timeout] = ContextVar("judge_deadline")


@contextmanager
def judging(deadline: asyncio.Timeout) -> Iterator[None]:
    """Make `deadline`, which has been entered, that of the judge that is awaited inside."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def paused() -> Iterator[None]:
    """Stop the clock of the judge in progress; outside of any it does nothing."""
    deadline = _deadline.get(None)
    when = deadline.when() if deadline is not None else None
    if deadline is None or when is None:
        yield
        return
    loop = asyncio.get_running_loop()
    left = when - loop.time()
    deadline.reschedule(None)
    try:
        yield
    finally:
        deadline.reschedule(loop.time() + left)
