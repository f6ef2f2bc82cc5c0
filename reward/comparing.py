"""Compares answers with references in a few processes of its own, one answer at a time in each.

Flows in: (reference, answer) pairs, any number at once. Flows out: True or False for each.
sympy can take for ever on what a policy writes, in Python code or below it, so a comparison has a limit of
CPU time and of memory, and whoever gives it up ends its process. A process that is not asked for a while ends
by itself; so does one that has grown large, and one whose starter is gone.
"""

import asyncio
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from weakref import WeakKeyDictionary

import psutil

from envs.deadline import paused
from reward.mathematics import UnreadableReference, equal, read_reference

# As many processes at most compare at once, or as there are CPUs.
MOST_WORKERS = 4
IDLE_SECONDS = 10.0
START_SECONDS = 120.0
# CPU seconds of one comparison, and those after which the kernel ends a process that does not hear of it.
CPU_SECONDS, HARD_CPU_SECONDS = 5, 15
MEMORY_BYTES = 4 << 30
# A process that has grown so large makes room for a new one: sympy keeps what it has seen.
GROWN_BYTES = 1 << 30


class ComparingFailed(RuntimeError):
    """A comparing process could not be started, or died."""


class TooLong(BaseException):
    """The comparison in progress has had its CPU time. No `except Exception` of a library stops it."""


async def compare(reference: str, answer: str) -> bool:
    """True if `answer` is mathematically `reference`.

    An answer that takes more CPU time or memory than any right one is no right one. Waiting for a process
    stops the clock of the judge in progress. Raises UnreadableReference, ComparingFailed.
    """
    places = _places.get(loop := asyncio.get_running_loop())
    if places is None:
        places = _places[loop] = asyncio.Semaphore(_most_workers())
    with paused():
        await places.acquire()
    try:
        found = None
        while found is None:
            with paused():
                worker = await _started()
            # One that has waited for long may just have ended.
            found = await worker.ask([reference, answer])
    finally:
        places.release()
    if "failed" in found:
        raise ComparingFailed(str(found["failed"]))
    if "refused" in found:
        raise UnreadableReference(str(found["refused"]))
    return bool(found["equal"])


async def _started() -> "_Worker":
    """An idle process, or a new one that has started."""
    if _idle:
        return _idle.pop()
    worker = _Worker()
    try:
        async with asyncio.timeout(START_SECONDS):
            await worker.line()
    except OSError:  # a TimeoutError is one
        worker.end(kill=True)
        raise ComparingFailed("the process that compares answers does not start") from None
    except asyncio.CancelledError:
        worker.end(kill=True)
        raise
    return worker


class _Worker:
    """A comparing process and the socket to it."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from reward.comparing import work; work({GROWN_BYTES})"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.used = False

    async def ask(self, pair: list[str]) -> dict[str, object] | None:
        """Answer of the process, which is idle again then; None where it ended before it was asked."""
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(self.socket, json.dumps(pair).encode() + b"\n")
            found = json.loads(await self.line())
        except OSError:
            code = self.end()
            if self.used and code == 0:
                return None
            if code == -signal.SIGXCPU:
                return {"equal": False}
            raise ComparingFailed(f"the process that compares answers died (code {code})") from None
        except asyncio.CancelledError:
            self.end(kill=True)
            raise
        self.used = True
        _idle.append(self)
        return found

    async def line(self) -> bytes:
        """Next line of the process. Raises OSError where it has ended."""
        found = b""
        while not found.endswith(b"\n"):
            part = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
            if not part:
                raise OSError("it has ended")
            found += part
        return found

    def end(self, *, kill: bool = False) -> int:
        if kill:
            self.process.kill()
        self.socket.close()
        return self.process.wait()


_idle: list[_Worker] = []
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def work(grown_bytes: int) -> None:
    """Compare what comes on standard input, a socket, until it ends, or nothing comes for a while, or this
    process has grown so large."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's, which is meant for the starter
    signal.signal(signal.SIGPROF, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    equal("x + 1", "1 + x")  # loads and prepares what the first answer would wait for

    with socket.socket(fileno=0) as asked, asked.makefile("r", encoding="utf-8") as lines:
        asked.sendall(b"ready\n")
        while select.select([asked], [], [], IDLE_SECONDS)[0]:
            if not (line := lines.readline()):
                return
            asked.sendall(json.dumps(_found(*json.loads(line))).encode() + b"\n")
            if _resident_bytes() > grown_bytes:
                return


def _resident_bytes() -> int:
    """Memory that this process has now. Its `ru_maxrss` may be its starter's, which it was for a moment."""
    return psutil.Process().memory_info().rss


def _found(reference: str, answer: str) -> dict[str, object]:
    """Answer to one pair."""
    try:
        with _limited():
            read_reference(reference)
    except UnreadableReference as error:
        return {"refused": str(error)}
    except (TooLong, MemoryError):
        return {"refused": f"it takes more than {CPU_SECONDS} s to read"}
    try:
        with _limited():
            return {"equal": equal(reference, answer)}
    except (TooLong, MemoryError, RecursionError):
        return {"equal": False}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


@contextmanager
def _limited() -> Iterator[None]:
    """Give what is done inside its CPU time; the kernel ends the process where Python code never runs."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (used + HARD_CPU_SECONDS, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLong


def _most_workers() -> int:
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))
