"""Watches an event loop: what on it took longer than it may, with the stack, and what never ended.

Time in which the machine ran something else in place of this thread does not count (Linux says how long
that was), so a busy machine is not mistaken for a blocking environment.
"""

import asyncio
import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

LIMIT_SECONDS = 0.05
_POLL_SECONDS = 0.01
_STACK_FRAMES = 8
_OURS = str(Path(__file__).parent)


@dataclass(frozen=True)
class Block:
    """One stretch of `act` in which the event loop could do nothing else."""

    act: str
    seconds: float
    stack: str


@dataclass(frozen=True)
class Stuck:
    """An act that goes on after its deadline; running: it holds the event loop."""

    act: str
    seconds: float
    running: bool
    stack: str


class Watch:
    """Measures acts on the event loop of the thread that made it, until the process ends.

    stuck: called, in the watching thread, when an act takes longer than `seconds` or than a limit of its
    own.
    """

    def __init__(self, seconds: float, stuck: Callable[[Stuck], None]) -> None:
        self.seconds = seconds
        self.stuck = stuck
        self.blocks: list[Block] = []
        self.act = ""
        self._act_began = 0.0
        self._limit = seconds
        self._running = False
        self._measured = False
        self._began = 0.0
        self._waited = 0.0
        self._stack = ""
        self._task: asyncio.Task[Any] | None = None
        self._thread = threading.get_ident()
        self._schedstat = _open_schedstat()
        self._install()
        threading.Thread(target=self._look, daemon=True, name="dorado-watch").start()

    @contextlib.contextmanager
    def during(
        self, act: str, *, measured: bool = True, seconds: float | None = None
    ) -> Iterator[None]:
        """Everything that runs now is of this act; not measured: it may block, but not for ever."""
        self._begin_stretch()
        self._running, self._measured = True, measured
        self._limit = self.seconds if seconds is None else seconds
        self._act_began = perf_counter()
        with contextlib.suppress(RuntimeError):  # outside a loop nothing waits
            self._task = asyncio.current_task()
        self.act = act
        try:
            yield
        finally:
            self._end_stretch()
            self.act = ""

    def _install(self) -> None:
        run = asyncio.events.Handle._run  # pyright: ignore[reportAttributeAccessIssue]

        def timed(handle: asyncio.Handle) -> None:
            if threading.get_ident() != self._thread:
                run(handle)
                return
            self._begin_stretch()
            self._running = True
            try:
                run(handle)
            finally:
                self._end_stretch()
                self._running = False

        asyncio.events.Handle._run = timed  # pyright: ignore[reportAttributeAccessIssue]

    def _begin_stretch(self) -> None:
        self._stack = ""
        self._waited = self._run_delay()
        self._began = perf_counter()

    def _end_stretch(self) -> None:
        if not (self.act and self._measured):
            return
        seconds = perf_counter() - self._began
        if seconds > LIMIT_SECONDS:
            seconds -= self._run_delay() - self._waited
        if seconds > LIMIT_SECONDS:
            self.blocks.append(Block(self.act, seconds, self._stack))

    def _run_delay(self) -> float:
        """Seconds in which this thread could have run and something else did, since it began."""
        if self._schedstat is None:
            return 0.0
        return int(os.pread(self._schedstat, 80, 0).split()[1]) / 1e9

    def _waiting(self) -> str:
        """Where the act waits: the awaits from its task inwards."""
        awaited: Any = self._task.get_coro() if self._task is not None else None
        frames: list[tuple[FrameType, int]] = []
        while (frame := getattr(awaited, "cr_frame", None)) is not None:
            frames.append((frame, frame.f_lineno))
            awaited = awaited.cr_await
        stack = traceback.StackSummary.extract(iter(frames))
        kept = [one for one in stack if not _plumbing(one.filename)]
        return "".join(traceback.format_list(kept[-_STACK_FRAMES:]))

    def _look(self) -> None:
        pause = threading.Event()
        while not pause.wait(_POLL_SECONDS):
            act, now = self.act, perf_counter()
            if not act:
                continue
            if self._running and not self._stack and now - self._began > LIMIT_SECONDS:
                self._stack = stack_of(sys._current_frames().get(self._thread))
            taken = now - self._act_began
            if taken > self._limit:
                here = sys._current_frames().get(self._thread)
                stack = stack_of(here) if self._running else self._waiting()
                self.stuck(Stuck(act, taken, self._running, stack))
                return


def stack_of(frame: FrameType | None) -> str:
    """The innermost frames, without the event loop's and ours, the last call last."""
    if frame is None:
        return ""
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame))
    stack.reverse()
    kept = [one for one in stack if not _plumbing(one.filename)]
    return "".join(traceback.format_list(kept[-_STACK_FRAMES:]))


def _plumbing(file: str) -> bool:
    return (
        file.startswith((_OURS, "<frozen runpy"))
        or "/asyncio/" in file
        or file.endswith(("envs/session.py", "/contextlib.py"))
    )


def _open_schedstat() -> int | None:
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
