"""A run's folder on a node, for weights and caches: `weights_dir/dorado-RUN/NODE`, in memory as a rule.

Beside it lies `NODE.owner`, which names the process that will remove it. By that the next run on the node
finds what one that was killed has left, and removes it.
"""

import os
import shutil
from pathlib import Path

import psutil

PREFIX = "dorado-"
UNKNOWN = "?"


def node_folder(folder: str | Path, node: str) -> Path:
    """The folder in `folder` that is the node's own, whatever file systems nodes share."""
    return Path(folder) / node


def claim(folder: Path) -> None:
    """Make a node's folder, which is this process's to remove; remove those of processes that are gone."""
    for owner in folder.parent.parent.glob(f"{PREFIX}*/*.owner"):
        if _is_gone(owner):
            empty(owner.with_suffix(""))
    folder.mkdir(parents=True, exist_ok=True)
    owner = _owner(folder)
    partial = owner.with_suffix(".partial")
    partial.write_text(f"{_machine()} {os.getpid()} {psutil.Process().create_time():.2f}")
    partial.replace(owner)


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


def _is_gone(owner: Path) -> bool:
    """Whether the process that an owner file names is; of another machine's nobody here can know."""
    try:
        machine, pid, created = owner.read_text().split()
        if machine == UNKNOWN or machine != _machine():
            return False
        return abs(psutil.Process(int(pid)).create_time() - float(created)) > 1
    except psutil.NoSuchProcess:
        return True
    except (OSError, ValueError, psutil.Error):
        return False
