"""Equips every actor's process: a log file, errors as they were raised or in one line, an end."""

import errno
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence

import psutil
from ray.exceptions import RayActorError, RayError, RayTaskError


def log_to(path: str) -> None:
    """Send this process's output, and that of the processes it will start, to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())


def cause(error: Exception) -> Exception:
    """The exception as it was raised in another process, without Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) else error


def is_disk_full(error: Exception) -> bool:
    """True if there was no room left for a file, or no quota, in this process or another."""
    error = cause(error)
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def first_line(error: BaseException) -> str:
    """An exception as one line; of a Ray error the last line, which holds the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if isinstance(error, RayError | RayActorError) else 0].strip()[:300]


def end_processes(processes: Sequence[psutil.Process]) -> None:
    """SIGTERM, five seconds, SIGKILL; by process object, so a number used again is never hit."""
    alive = [p for p in processes if p.is_running()]
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            try:
                process.send_signal(sign)
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(alive, timeout=5)
