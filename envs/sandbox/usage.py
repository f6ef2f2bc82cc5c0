"""Usage of a run, seen from outside: its processes, their memory, its files."""

import contextlib
import os
import threading
import time
from dataclasses import dataclass

_PAGE = os.sysconf("SC_PAGE_SIZE")
_FRESH_SECONDS = 0.05
_lock = threading.Lock()
_table: dict[int, tuple[int, int]] = {}
_read_at = 0.0


@dataclass(frozen=True)
class Usage:
    """processes: how many; memory_bytes: resident, shared pages counted in each; disk_bytes: of files."""

    processes: int
    memory_bytes: int
    disk_bytes: int


def usage_of(root: int, spared: int, directory: str | None) -> Usage:
    """The processes below `root` but for `spared`, and the files below `directory`."""
    table = _processes()
    found, added = {root}, True
    while added:
        new = {pid for pid, (parent, _) in table.items() if parent in found} - found
        found, added = found | new, bool(new)
    counted = found - {root, spared}
    memory = sum(table[pid][1] for pid in counted if pid in table)
    return Usage(len(counted), memory, _disk(directory) if directory else 0)


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and resident bytes of each process of the host. Runs that look at once share one reading."""
    global _table, _read_at
    with _lock:
        if time.monotonic() - _read_at > _FRESH_SECONDS:
            _table, _read_at = dict(_read()), time.monotonic()
        return _table


def _read():
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                parts = file.read().rpartition(b")")[2].split()
                yield int(name), (int(parts[1]), int(parts[21]) * _PAGE)


def _disk(directory: str) -> int:
    """Bytes that the files below a directory take, and 4096 for each name. The tree may be hostile."""
    total, left = 0, [directory]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    total += 4096
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_dir(follow_symlinks=False):
                            left.append(entry.path)
                        else:
                            total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
        except OSError:
            # Too deep to look into, or closed to us: nobody can say how much is in it.
            return 2**62
    return total
