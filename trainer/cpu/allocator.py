"""Memory that is freed on a CPU stays with the process, for the next allocation to take.

A step allocates and frees the same large tensors over and over. glibc gives each back to the kernel, and gets
it again as pages that fault one by one and are filled with zeros: up to a sixth of a step.
"""

import ctypes

# For the environment of a process that trains in another thread than its first: one heap for all threads, as
# those of further threads cannot hold a large tensor. A thread that has one already keeps it.
VARIABLES = {"MALLOC_ARENA_MAX": "1"}
# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """For this process from now on; its memory stays at its peak. Without effect where libc is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    # Older releases refuse more than 32 MiB.
    _ = mallopt(_MMAP_THRESHOLD, 2**31 - 1) or mallopt(_MMAP_THRESHOLD, 2**25)
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_ARENA_MAX, 1)  # as VARIABLES
