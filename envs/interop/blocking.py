"""Asynchronous code run to its end from code that is not asynchronous, such as `Env.probe`."""

import asyncio
import threading
from collections.abc import Coroutine


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
