"""User ids for runs, where we are root: each run has one of its own, so that a limit on a user's processes
is a limit on the run's, and runs cannot touch each other's."""

import os
from contextlib import contextmanager

# Far from any user of the machine. The id holds our own process's id, so two processes never share one.
_FIRST, _PER_PROCESS = 2**30, 1024
_taken: set[int] = set()


class NoUid(Exception):
    """All ids of this process are in use, or this container knows none of them."""


@contextmanager
def own_uid():
    """A user id nobody else has while the block runs; None where we are not root. Raises NoUid."""
    if os.getuid() != 0:
        yield None
        return
    first, count = _range()
    slot = next((n for n in range(count) if first + n not in _taken), None)
    if slot is None:
        raise NoUid(
            f"{count} sandboxes run at once in this process; no user id is left for one more"
        )
    uid = first + slot
    _taken.add(uid)
    try:
        yield uid
    finally:
        _taken.discard(uid)


def _range() -> tuple[int, int]:
    """The first of this process's ids, and how many it has."""
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        rows = [[int(part) for part in line.split()] for line in file]
    inside, _, count = max(rows, key=lambda row: row[2])
    last = inside + count - 1
    if inside <= _FIRST and last >= 2 * _FIRST:
        return _FIRST + os.getpid() % 2**20 * _PER_PROCESS, _PER_PROCESS
    # A container with few ids: the upper half of them, in blocks of 64.
    blocks = count // 2 // 64
    if blocks == 0:
        raise NoUid(f"this container has {count} user ids; sandboxes as root need 128 or more")
    return last - 64 * (1 + os.getpid() % blocks), 64
