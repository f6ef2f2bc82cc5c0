"""Clients of wire protocols, imported where they are used, and used from code that is not asynchronous."""

import asyncio
import importlib
import threading
from collections.abc import Coroutine
from typing import Any


def imported(module: str, env: str) -> Any:
    """A module of the extra `interop`. Raises ValueError with a sentence where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"environment {env!r} needs the package {error.name!r}: pip install 'dorado-rl[interop]'"
        ) from None


def run_now(act: Coroutine[Any, Any, Any]) -> None:
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
