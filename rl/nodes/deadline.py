"""`within`: an await under a deadline; `in_daemon`: a call that may never return, beside the event loop."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def within(act: Awaitable[T], seconds: float | None) -> T:
    """The result of `act`. Raises TimeoutError after `seconds` (None: never).

    In place of `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes in the same
    turn as the result: a loop that is being ended would go on for ever.
    """
    async with asyncio.timeout(seconds):
        return await act


async def in_daemon(act: Callable[[], T]) -> T:
    """The result of `act()`, called in a thread that nobody waits for when this process ends."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(set_it: Callable[[], None]) -> None:
        if not answer.done():
            set_it()

    def call() -> None:
        try:
            result = act()
        except Exception as error:
            told = error
            outcome = lambda: answer.set_exception(told)  # noqa: E731
        else:
            outcome = lambda: answer.set_result(result)  # noqa: E731
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=call, daemon=True).start()
    return await answer
