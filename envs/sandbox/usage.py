"""Usage of a run, seen from outside: its processes, their memory, its files."""

import contextlib
import os
import stat
import threading
import time
from dataclasses import dataclass

_PAGE = os.sysconf("SC_PAGE_SIZE")
_FRESH_SECONDS = 0.05
_lock = threading.Lock()
_table: dict[int, tuple[int, int]] = {}
_read_at = 0.0


# More than there is: nobody can say how much is in it.
_UNKNOWN = 2**62


@dataclass(frozen=True)
class Usage:
    """processes: how many; memory_bytes: resident, shared pages counted in each; disk_bytes: of files, those
    without a name that a process still holds included."""

    processes: int
    memory_bytes: int
    disk_bytes: int


def usage_of(root: int, spared: int, directory: str | None, file_bytes: int) -> Usage:
    """The processes below `root` but for `spared`, and the files below `directory`.

    file_bytes: the most that one file can have.
    """
    table = _processes()
    found, added = {root}, True
    while added:
        new = {pid for pid, (parent, _) in table.items() if parent in found} - found
        found, added = found | new, bool(new)
    counted = found - {root, spared}
    memory = sum(table[pid][1] for pid in counted if pid in table)
    disk = 0
    if directory:
        disk = _disk(directory) + held_without_name(counted, directory, file_bytes)
    return Usage(len(counted), memory, disk)


def held_without_name(pids: set[int], directory: str, file_bytes: int) -> int:
    """Bytes of files below the directory that were deleted and are still open, mapped or being executed.

    As root without the right to look into processes (CAP_SYS_PTRACE) they cannot be counted.
    """
    sizes: dict[int, int] = {}
    for pid in pids:
        for base in _tables(pid):
            sizes |= {
                node: sizes.get(node, size) for node, size in _mapped(base, directory, file_bytes)
            }
            sizes |= dict(_open(base))
    return sum(sizes.values())


def _tables(pid: int) -> list[str]:
    """Where the kernel shows the files of a process: at its first thread, else at one that still lives."""
    first = f"/proc/{pid}"
    with contextlib.suppress(OSError):
        if os.listdir(f"{first}/fd"):
            return [first]
        return [f"{first}/task/{thread}" for thread in os.listdir(f"{first}/task")]
    return [first]


def _open(base: str):
    """Inode and bytes of open files without a name. A live process that cannot be looked at may hold any."""
    try:
        names = os.listdir(f"{base}/fd")
    except PermissionError:
        if os.getuid() and _has_memory(base):
            yield -1, _UNKNOWN
        return
    except OSError:
        return
    for name in [*(f"fd/{name}" for name in names), "exe"]:
        with contextlib.suppress(OSError):
            state = os.stat(f"{base}/{name}")
            if stat.S_ISREG(state.st_mode) and state.st_nlink == 0:
                yield state.st_ino, state.st_blocks * 512


def _mapped(base: str, directory: str, file_bytes: int):
    """Inode and bytes of deleted files that a process has in its address space, open or not."""
    start, end = directory.encode() + b"/", b" (deleted)"
    with contextlib.suppress(OSError), open(f"{base}/maps", "rb") as file:
        for line in file:
            parts = line.rstrip(b"\n").split(None, 5)
            if len(parts) == 6 and parts[5].startswith(start) and parts[5].endswith(end):
                size = file_bytes
                with contextlib.suppress(OSError):
                    size = os.stat(f"{base}/map_files/{parts[0].decode()}").st_blocks * 512
                yield int(parts[4]), size


def _has_memory(base: str) -> bool:
    """False for one that is ending or has ended, which holds no files for long."""
    with contextlib.suppress(OSError), open(f"{base}/statm", "rb") as file:
        return not file.read().startswith(b"0 ")
    return False


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
            return _UNKNOWN  # too deep to look into, or closed to us
    return total
