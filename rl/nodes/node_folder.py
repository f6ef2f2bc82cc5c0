"""A run's folder on a node, for weights and caches: `weights_dir/dorado-RUN/NODE`, in memory as a rule.

Beside it lies `NODE.owner`, which names the process that will remove it. By that the next run on the node
finds what one that was killed has left, and removes it.
"""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

PREFIX = "dorado-"
UNKNOWN = "?"


def node_folder(folder: str | Path, node: str) -> Path:
    """The folder in `folder` that is the node's own, whatever file systems nodes share."""
    return Path(folder) / node


def claim(folder: Path) -> None:
    """Make a node's folder, which is this process's to remove; remove those of processes that are gone."""
    owner, here = _owner(folder), f"{_machine()} {os.getpid()} {_started(os.getpid())}"
    if owner.exists() and owner.read_text() == here:
        return
    # First: they may have left no room for an owner.
    tidy(folder.parent.parent)
    folder.mkdir(parents=True, exist_ok=True)
    partial = owner.with_suffix(".partial")
    partial.write_text(here)
    partial.replace(owner)


def tidy(weights_dir: Path) -> None:
    """Remove what killed runs have left there, of this user and this machine."""
    for run in weights_dir.glob(f"{PREFIX}*"):
        # Whatever goes wrong with what others have left is no reason not to begin.
        with suppress(OSError):
            _tidy(run)


def _tidy(run: Path) -> None:
    """Remove what one run has left on nodes where it is gone."""
    status = run.lstat()
    # What is another user's, or leads to somewhere else, is not ours to remove.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    for owner in list(run.glob("*.owner")):
        if _is_gone(owner):
            empty(owner.with_suffix(""))


def empty(folder: Path) -> None:
    """Remove a node's folder, and the one it lies in when nothing else is left there."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _owner(folder).unlink(missing_ok=True)
        os.rmdir(folder.parent)
    except OSError:  # another node's lies there too, or it is another user's
        return


def _owner(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.owner")


def _machine() -> str:
    """Since when it runs, and among which processes we are: a process id means something within that only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return UNKNOWN


def _started(pid: int) -> int:
    """When a process began, in clock ticks since the machine did. Raises OSError where there is none.

    Not the time of day: a clock that is set would change it.
    """
    line = Path(f"/proc/{pid}/stat").read_text()
    return int(line.rpartition(")")[2].split()[19])


def _is_gone(owner: Path) -> bool:
    """True if the process that an owner file names is gone; of another machine's nobody here can know."""
    try:
        machine, pid, started = owner.read_text().split()
        number = int(pid)
    except ValueError:
        return False
    if machine == UNKNOWN or machine != _machine():
        return False
    try:
        return str(_started(number)) != started
    except (FileNotFoundError, ProcessLookupError):
        return True
