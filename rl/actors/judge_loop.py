"""Judges on an event loop in a thread of its own: one that blocks the loop keeps no controller from its work.

In: an act of judging. Out: what it returns or raises. A loop that has not moved for so many seconds is left
to itself, with its thread and all that was being judged on it; what comes next has a new one.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from reward.score import LAST_SECONDS, JudgeFault

T = TypeVar("T")
# Between two signs of life of a loop, and between two looks at them.
BEAT_SECONDS = 1.0


class JudgeLoop:
    """Runs acts of judging beside the event loop of whoever asks."""

    def __init__(self, blocked_seconds: float) -> None:
        """blocked_seconds: a judge that lets nothing else run for longer is at fault."""
        self.blocked_seconds = blocked_seconds
        self.thread = _Thread()

    async def run(self, act: Coroutine[Any, Any, T]) -> T:
        """The act's result. Raises what it raises, and JudgeFault where the loop does not move."""
        thread = self.thread
        answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(act, thread.loop))
        try:
            while not (await asyncio.wait({answer}, timeout=BEAT_SECONDS))[0]:
                if time.monotonic() - thread.moved > self.blocked_seconds:
                    thread.stop()
                    self.thread = _Thread() if thread is self.thread else self.thread
                    break
            if answer.done() and not answer.cancelled():
                return answer.result()
            raise JudgeFault(
                f"a judge has blocked the event loop for {self.blocked_seconds:g} s: let it await, or use "
                "asyncio.to_thread for what blocks"
            )
        finally:
            answer.cancel()

    def close(self) -> None:
        """End the thread; one that is blocked ends when it is free again."""
        self.thread.stop()


class _Thread:
    """A thread with an event loop. moved: when it last did."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.moved = time.monotonic()
        self.loop.call_soon(self._beat)
        threading.Thread(target=self._run, daemon=True, name="dorado-judges").start()

    def stop(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)

    def _beat(self) -> None:
        self.moved = time.monotonic()
        self.loop.call_later(BEAT_SECONDS, self._beat)

    def _run(self) -> None:
        while not self._ran_to_its_end():
            pass
        if tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=LAST_SECONDS))
        self.loop.close()

    def _ran_to_its_end(self) -> bool:
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt):  # of a callback that a judge has left
            return False
        return True
