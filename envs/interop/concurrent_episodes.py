"""Episodes beside each other in a child that answers one request at a time (`lines_server`).

They run on an event loop in a thread of its own: `begin` returns a number, `ended` says what came of those
that have ended, `drop` ends one. Loaded by path into the child's interpreter, so it imports none of ours.
"""

import asyncio
import contextlib
import itertools
import os
import random
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any

Json = dict[str, Any]
# Makes an episode of: settings, a task's data, the policy's URL (without /v1), the name of the variable that
# holds its key, its model.
Play = Callable[[str, Json, str, str, str], Coroutine[Any, Any, Json]]


class Episodes:
    """Episodes in progress, by number."""

    def __init__(self, play: Play) -> None:
        self.play = play
        # Another process's numbers are none of this one's, which is asked for those of a child that died.
        self.numbers = itertools.count(random.SystemRandom().getrandbits(48))
        self.running: dict[int, Any] = {}
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def now(self, act: Coroutine[Any, Any, Any]) -> Any:
        """Run on the loop to its end, and return or raise what it does."""
        return asyncio.run_coroutine_threadsafe(act, self.loop).result()

    def begin(self, settings: str, data: Json, url: str, key: str, model: str) -> int:
        """Begin an episode of a task, whose policy is at this endpoint (without `/v1`)."""
        number = next(self.numbers)
        played = self._played(number, settings, data, url, key, model)
        self.running[number] = asyncio.run_coroutine_threadsafe(played, self.loop)
        return number

    async def _played(self, number: int, settings: str, data: Json, *where: str) -> Json:
        url, key, model = where
        with _variable(number, key) as variable:
            return await self.play(settings, data, url, variable, model)

    def ended(self, numbers: list[int]) -> dict[str, Json]:
        """Tell what came of those of these episodes that have ended, by number as text; {"lost": true} for a
        number of another process."""
        found: dict[str, Json] = {}
        for number in numbers:
            if number not in self.running:
                found[str(number)] = {"lost": True}
            elif self.running[number].done():
                found[str(number)] = _outcome(self.running.pop(number))
        return found

    def drop(self, number: int) -> None:
        """End an episode, and wait until what it has started is gone."""
        if (episode := self.running.pop(number, None)) is not None:
            self.now(_ended(episode))


def _outcome(episode: Any) -> Json:
    """An episode's result, or {"raised": sentence}."""
    try:
        return episode.result()
    except Exception as error:  # foreign code's; who asked judges
        return {"raised": " ".join(f"{type(error).__name__}: {error}".split())}


async def _ended(episode: Any) -> None:
    episode.cancel()
    while not episode.done():
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def _variable(number: int, key: str) -> Generator[str, None, None]:
    """The name of a variable that holds the key: such packages take one from there alone."""
    name = f"DORADO_{os.getpid()}_{number}_API_KEY"
    os.environ[name] = key
    try:
        yield name
    finally:
        del os.environ[name]
