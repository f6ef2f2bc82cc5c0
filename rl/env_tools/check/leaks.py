"""Finds what an environment holds of this process and its machine: children, threads, ports, descriptors,
files.

Two looks, one before and one after some episodes, differ by what those episodes left behind.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>
_SETTLE_SECONDS = 2.0
_POLL_SECONDS = 0.02
_NAMED = 3


@dataclass(frozen=True)
class Held:
    """Everything that is held at one time, each kind as text for the author, e.g. ports
    {"127.0.0.1:8000"}."""

    processes: frozenset[str]
    threads: frozenset[str]
    ports: frozenset[str]
    descriptors: frozenset[str]
    files: frozenset[str]
    tasks: frozenset[str] = frozenset()

    def since(self, before: "Held") -> "Held":
        """Return what has come to be held since then."""
        return Held(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(Held)))

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(Held))

    def __str__(self) -> str:
        """E.g. `2 processes (41 sleep 100, 42 sleep 100), 1 temporary file (world.db)`."""
        parts = [
            _count("process", "es", self.processes),
            _count("thread", "s", self.threads),
            _count("listening port", "s", self.ports),
            _count("file descriptor", "s", self.descriptors),
            _count("temporary file", "s", self.files),
            _count("asynchronous task", "s", self.tasks),
        ]
        return ", ".join(part for part in parts if part)


def adopt_orphans() -> None:
    """Let this process be the parent of what its children leave running, so that it is seen."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def held(folder: Path) -> Held:
    """List what this process holds now; `folder` is where it makes its temporary files."""
    gc.collect()
    processes = list(_children())
    return Held(
        frozenset(f"{p.pid} {name}" for p, name in processes),
        frozenset(
            f"{t.name} {t.ident}" for t in threading.enumerate() if not _of_the_loops_pool(t)
        ),
        frozenset(_ports([psutil.Process(), *(p for p, _ in processes)])),
        frozenset(_descriptors()),
        frozenset(str(path.relative_to(folder)) for path in folder.rglob("*")),
        frozenset(_tasks()),
    )


async def left_since(before: Held, folder: Path) -> Held:
    """List what is held beyond `before`, once nothing more goes away or two seconds have passed.

    A process that was told to end, or a tool's thread, may need a moment.
    """
    deadline = time.perf_counter() + _SETTLE_SECONDS
    while (left := held(folder).since(before)) and time.perf_counter() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
    return left


def end_children() -> None:
    """End what is still running below this process."""
    for process, _ in list(_children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _children() -> Iterable[tuple[psutil.Process, str]]:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, " ".join(process.cmdline())[:60]


def _of_the_loops_pool(thread: threading.Thread) -> bool:
    """`asyncio.to_thread` keeps a bounded number of threads for all episodes of a process."""
    return thread.name.startswith("asyncio_")


def _ports(processes: Iterable[psutil.Process]) -> Iterable[str]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    yield f"{one.laddr.ip}:{one.laddr.port}"


def _descriptors() -> Iterable[str]:
    folder = Path("/proc/self/fd")
    for entry in os.listdir(folder) if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            yield f"{entry} {os.readlink(folder / entry)}"


def _tasks() -> Iterable[str]:
    """The tasks of the event loop that runs here, if one does, such as `Task-12 Server.poll`."""
    try:
        running = asyncio.all_tasks()
    except RuntimeError:
        return
    for task in running:
        yield f"{task.get_name()} {getattr(task.get_coro(), '__qualname__', '')}"


def _count(noun: str, plural: str, things: frozenset[str]) -> str:
    if not things:
        return ""
    named = sorted(things)[:_NAMED]
    more = ", ..." if len(things) > _NAMED else ""
    return f"{len(things)} {noun}{plural if len(things) > 1 else ''} ({', '.join(named)}{more})"
