"""`within`: an await under a deadline."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(act: Awaitable[T], seconds: float | None) -> T:
    """The result of `act`. Raises TimeoutError after `seconds` (None: never).

    In place of `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes in the same
    turn as the result: a loop that is being ended would go on for ever.
    """
    async with asyncio.timeout(seconds):
        return await act
