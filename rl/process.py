"""What every actor's process needs: a log file of its own, and errors as they were raised."""

import os
import sys

from ray.exceptions import RayTaskError


def log_to(path: str) -> None:
    """Send this process's output, and that of the processes it will start, to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())


def cause(error: Exception) -> Exception:
    """The exception as it was raised in another process, without Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) else error
