"""Compiled code of CPU engines, kept for this user between runs; what is kept is complete.

torch writes a library where it looks for it: killed in the middle it leaves a torn one, which no later start
survives. So an engine compiles in a folder of its own, which begins with what is kept, and what
is new there is put in place once the engine has started. In: the user's cache folder. Out: the folder for
`VLLM_CACHE_ROOT`. Left out: a bound of what is kept, some megabytes for each shape of a policy.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_OWN, _LOCK = "engine-", ".lock"
# Of files that are not whole, or of no use to another process.
_PASSING = (_LOCK, ".tmp")


def user_cache() -> Path:
    """The folder of what is kept: `$XDG_CACHE_HOME/dorado/compiled`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dorado" / "compiled"


def check_compiler() -> None:
    """Raise ValueError where the machine has no C++ compiler, by the name that torch calls it."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise ValueError(
            f"engine.compile needs a C++ compiler on the engine's machine, and there is no {name}: install "
            "g++ or set CXX, or leave engine.compile out"
        )


class CompileCache:
    """One engine's part; `folder` is where it may compile, from now on until `close`."""

    def __init__(self, root: Path) -> None:
        """Also removes folders that engines left which were killed. Raises OSError for no room to write."""
        self.kept = root / _instructions()
        self.kept.mkdir(parents=True, exist_ok=True)
        _remove_left(root)
        self.lock, name = tempfile.mkstemp(prefix=_OWN, suffix=_LOCK, dir=root)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.folder = Path(name).with_suffix("")
        self.begun_with = {path.relative_to(self.kept) for path in _whole(self.kept)}
        for path in self.begun_with:
            _link(self.kept / path, self.folder / path)
        self.folder.mkdir(exist_ok=True)

    def keep(self) -> int:
        """Keep what has been compiled; only while nothing compiles. Returns how many libraries are new."""
        new = 0
        for path in _whole(self.folder):
            name = path.relative_to(self.folder)
            kept = self.kept / name
            if name in self.begun_with and kept.exists() and kept.samefile(path):
                continue
            new += path.suffix == ".so" and name not in self.begun_with
            passing = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
            _link(path, passing)
            passing.replace(kept)
        return new

    def close(self) -> None:
        """Remove the engine's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_suffix(_LOCK).unlink(missing_ok=True)
        os.close(self.lock)


def _instructions() -> str:
    """A name for what this CPU can do: nodes of several kinds may share a home."""
    found = re.search(r"^(flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
    return hashlib.sha256((found.group(2) if found else "").encode()).hexdigest()[:12]


def _whole(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in _PASSING:
            yield path


def _link(source: Path, target: Path) -> None:
    """Have the file in another place too: compilers replace files, they do not write into them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _remove_left(root: Path) -> None:
    """Remove the folders whose engine holds its lock no more."""
    for lock in root.glob(f"{_OWN}*{_LOCK}"):
        with suppress(OSError), lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
