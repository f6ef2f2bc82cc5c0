"""Sleep of a served model: its GPU memory is given back while nobody asks, and taken again for a question.

In: requests that are sent, and the time. Out: vLLM's `/sleep` (level 1: weights move to the host's memory,
the cache is dropped) and `/wake_up`. A model that may be asleep is woken before it is asked, whatever became
of the request that sent it to sleep: waking one that is awake changes nothing. No GPU has run this.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from envs.message import JsonObject
from rl.models.call import Refused, ServiceFault

# For falling asleep: weights are copied to the host's memory.
FALL_SECONDS = 120.0
# Level 1 keeps the weights; whoever still is in the engine has given up waiting.
SLEEP, WAKE = "/sleep?level=1&mode=abort", "/wake_up"


class Sleeper:
    """Puts one server to sleep after so many seconds without a request, and wakes it for the next."""

    def __init__(
        self,
        seconds: float,
        post: Callable[[str], Awaitable[JsonObject]],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """post: to a path of the server; raises ServiceFault, Refused. say: hears why it cannot sleep."""
        self.seconds = seconds
        self.post = post
        self.say = say
        self.clock = clock
        # True from when it is told to sleep until it has said that it is awake.
        self.asleep = False
        self._using = 0
        self._idle_since = clock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._changing = asyncio.Lock()

    @asynccontextmanager
    async def awake(self) -> AsyncGenerator[None]:
        """Keep it awake for a request. Raises ServiceFault where it does not wake."""
        self._using += 1
        self._idle.clear()
        try:
            async with self._changing:
                if self.asleep:
                    await self._wake()
            yield
        finally:
            self._using -= 1
            if not self._using:
                self._idle_since = self.clock()
                self._idle.set()

    def restarted(self) -> None:
        """Hear that its server is a new one, which is awake."""
        self.asleep = False
        self._idle_since = self.clock()

    async def watch(self) -> None:
        """Put it to sleep whenever it has been idle for long enough.

        Consumes the ends of requests. Produces sleep. Ends where the server knows no sleep, else by
        cancellation; a call that it makes has a deadline.
        """
        while True:
            await self._idle.wait()
            if (left := self._idle_since + self.seconds - self.clock()) > 0:
                await asyncio.sleep(left)
                continue
            async with self._changing:
                if self._using:
                    continue
                self._idle.clear()
                self.asleep = True
                try:
                    async with asyncio.timeout(FALL_SECONDS):
                        await self.post(SLEEP)
                except Refused as refused:
                    self.asleep = False
                    self.say(f"it cannot sleep: {refused}")
                    return
                except (ServiceFault, TimeoutError) as error:
                    why = str(error) or f"no answer within {FALL_SECONDS:g} s"
                    self.say(f"it may not be asleep: {why}")

    async def _wake(self) -> None:
        try:
            found = await self.post(WAKE)
        except Refused as refused:
            raise ServiceFault(f"it does not wake: {refused}") from None
        if found.get("status") != "awake":
            raise ServiceFault(f"it does not wake: {found}")
        self.asleep = False
