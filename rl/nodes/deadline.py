"""`within`: an await under a deadline; `while_watching`: an await that a watch may end; `in_daemon`: a call
that may never return, beside the event loop."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TypeVar, cast

T = TypeVar("T")


async def within(act: Awaitable[T], seconds: float | None) -> T:
    """The result of `act`. Raises TimeoutError after `seconds` (None: never).

    In place of `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes in the same
    turn as the result: a loop that is being ended would go on for ever.
    """
    async with asyncio.timeout(seconds):
        return await act


async def while_watching(act: Coroutine[object, object, T], watching: asyncio.Future[None]) -> T:
    """The result of `act`. Raises what `watching` does, if that comes first."""
    acting = asyncio.create_task(act)
    try:
        await asyncio.wait({acting, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not acting.done():
            watching.result()
        return await acting
    finally:
        acting.cancel()
        await asyncio.gather(acting, return_exceptions=True)


def in_daemon(act: Callable[[], T]) -> asyncio.Future[T]:
    """The result of `act()`, called in a thread that nobody waits for when this process ends."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast(T, result))

    def call() -> None:
        result, failed = None, None
        try:
            result = act()
        except Exception as error:
            failed = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=call, daemon=True).start()
    return answer
