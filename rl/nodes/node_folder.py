"""A run's folder on a node, for weights and caches: `weights_dir/dorado-RUN/NODE`, in memory as a rule.

Beside it lies `NODE.owner`, on which every process of the run that needs the folder holds a shared lock
(`flock`) until it ends, however it ends. The next run on the machine finds owners that nobody holds, and
removes their folders. The file names the machine's boot: a lock says nothing about processes of another
machine.
"""

import fcntl
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

PREFIX = "dorado-"
UNKNOWN = "?"

# The locks that this process holds, by owner file, as open descriptors: exec closes them, as the end does.
_held: dict[Path, int] = {}


def node_folder(folder: str | Path, node: str) -> Path:
    """The folder in `folder` that is the node's own, whatever file systems nodes share."""
    return Path(folder) / node


def claim(folder: Path) -> None:
    """Make a node's folder and keep it while this process lives; remove those of runs that are gone.

    Several processes may claim the same folder. Raises OSError.
    """
    owner = _owner(folder)
    if owner in _held and _is_at(_held[owner], owner):
        return
    # First: they may have left no room for an owner.
    tidy(folder.parent.parent)
    descriptor = _shared_lock(owner)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner.write_text(_signature(), encoding="utf-8")
    except OSError:
        os.close(descriptor)
        raise
    _held[owner] = descriptor


def tidy(weights_dir: Path) -> None:
    """Remove what killed runs have left there, of this user and this machine."""
    for run in weights_dir.glob(f"{PREFIX}*"):
        # Cleanup of other runs is best effort: it keeps no run from starting.
        with suppress(OSError):
            _tidy(run)


def _tidy(run: Path) -> None:
    """Remove a run's folders on nodes where the run is gone."""
    status = run.lstat()
    # What is another user's, or leads to somewhere else, is not ours to remove.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    for owner in list(run.glob("*.owner")):
        if (descriptor := _lock_of_the_gone(owner)) is not None:
            try:
                empty(owner.with_suffix(""))
            finally:
                os.close(descriptor)


def empty(folder: Path) -> None:
    """Remove a node's folder, and the one it lies in when nothing else is left there."""
    shutil.rmtree(folder, ignore_errors=True)
    owner = _owner(folder)
    try:
        owner.unlink(missing_ok=True)
        os.rmdir(folder.parent)
    except OSError:  # another node's lies there too, or it is another user's
        return
    finally:
        if owner in _held:
            os.close(_held.pop(owner))


def _owner(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.owner")


def _signature() -> str:
    """The content of an owner file whose holders lock it."""
    return f"flock {_machine()}"


def _machine() -> str:
    """An id of the machine since it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return UNKNOWN


def _shared_lock(owner: Path) -> int:
    """Open an owner file, new or there, and lock it. Raises OSError."""
    while True:
        owner.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(owner, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            # Waits at most while another run, which took the file for a dead one's, removes it.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            os.close(descriptor)
            raise
        if _is_at(descriptor, owner):
            return descriptor
        os.close(descriptor)


def _lock_of_the_gone(owner: Path) -> int | None:
    """Lock an owner file against new holders where nobody holds it; None where it is held, or who can know.

    Raises OSError.
    """
    descriptor = os.open(owner, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    known = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        signed = owner.read_text(errors="replace", encoding="utf-8") == _signature()
        known = signed and _machine() != UNKNOWN and _is_at(descriptor, owner)
    except BlockingIOError:
        known = False
    finally:
        if not known:
            os.close(descriptor)
    return descriptor if known else None


def _is_at(descriptor: int, path: Path) -> bool:
    """True if an open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
