"""The ends of a run's log files, as text. Which there are, the folder says; a link leads nowhere."""

import os
import stat
from pathlib import Path

from rl.dashboard.growing_lines import plain

TAIL_BYTES = 64 * 2**10
_MOST = 2000


def log_names(folder: Path) -> list[str]:
    """The files in logs/, by name; those that no address could name are left out."""
    try:
        with os.scandir(folder / "logs") as found:
            names = [e.name for e in found if e.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(name for name in names if plain(name) == name)[:_MOST]


def log_tail(folder: Path, name: str) -> str | None:
    """The last `TAIL_BYTES` of a file that is listed, from a line's beginning; None where it is not."""
    if name not in log_names(folder):
        return None
    # A link or a pipe that has taken the name since is not followed, and not waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(os.open(folder / "logs" / name, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES)
    except OSError:
        return None
    if size > TAIL_BYTES:
        cut = text.find(b"\n") + 1
        text = b"(what is before is not shown)\n" + text[cut:]
    return text.decode(errors="replace")
