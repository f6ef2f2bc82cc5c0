"""Ends a child process with its parent, even where the parent is killed and ends nothing itself (Linux)."""

import ctypes
import os
import signal
from collections.abc import Callable

# PR_SET_PDEATHSIG of <sys/prctl.h>.
_PDEATHSIG = 1


def ends_with_this_process(*, code: int = 1) -> Callable[[], None]:
    """Make the `preexec_fn` of a child that gets SIGTERM when this process is gone.

    code: exit code of a child whose parent is gone before that is arranged. The thread that starts the child
    has to live as long as the child is to. Nothing is loaded after the fork, where another thread's lock may
    be held for ever.
    """
    libc, parent = ctypes.CDLL(None), os.getpid()

    def arrange() -> None:
        libc.prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(code)

    return arrange
