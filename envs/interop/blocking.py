"""Asynchronous code run to its end from code that is not asynchronous, such as `Env.probe`."""

import asyncio
import threading
from collections.abc import Coroutine

from envs.session import HostFault


async def within(act: Coroutine[object, object, object], seconds: float, what: str) -> None:
    """Await an act that asks a server. Raises what it raises, and HostFault where it does not end in time."""
    try:
        async with asyncio.timeout(seconds):
            await act
    except TimeoutError:
        raise HostFault(f"{what} has not answered after {seconds:g} s") from None


def run_now(act: Coroutine[object, object, object]) -> None:
    """Run to its end, whether or not an event loop runs here, and raise what it raises."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(act)
        except BaseException as error:  # raised again below
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
