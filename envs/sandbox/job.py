"""A run in the sandbox: its parts, and the paths of the host that it can see."""

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from envs.sandbox.limits import Limits

# The system's programs and libraries, and what the dynamic linker needs to find them. Read only.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache",
           "/etc/alternatives", "/etc/localtime")  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
WORK = "/tmp"
# What bubblewrap takes on its command line: a descriptor per file, an argument per folder on the way.
_PLAIN_FILES, _PLAIN_NAME, _PLAIN_PART, _PLAIN_ARGUMENTS = 32, 512, 255, 2**16


@dataclass(frozen=True)
class Job:
    """One program to run: `Job(("/bin/sh", "-c", "ls"), {"a.txt": b"1"}, Limits())`.

    files lie in the working directory at the start. readable: paths of the host that it may read beside the
    system's. uid: whom it runs as where we are root; None: as ourselves. python: the interpreter inside.
    """

    argv: tuple[str, ...]
    files: Mapping[str, bytes]
    limits: Limits
    readable: tuple[str, ...] = ()
    uid: int | None = None
    python: str = ""

    def __post_init__(self) -> None:
        for name in self.files:
            path = PurePosixPath(name)
            if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
                raise ValueError(
                    f"sandbox file {name!r} has to be a path below the working directory"
                )
        if not self.argv or any("\0" in part for part in self.argv):
            raise ValueError("a sandbox needs a program to run, without NUL characters")

    @property
    def plain(self) -> bool:
        """True if a launcher can make the files and be given the command; else it is done inside.

        What fails inside, such as a name that is too long, is the program's own error.
        """
        names = {str(PurePosixPath(name)) for name in self.files}
        parents = {str(parent) for name in names for parent in PurePosixPath(name).parents}
        try:
            sizes = [len(os.fsencode(part)) for part in self.argv]
            plain = all(
                len(os.fsencode(name)) <= _PLAIN_NAME
                and all(len(os.fsencode(part)) <= _PLAIN_PART for part in name.split("/"))
                for name in names
            )
        except UnicodeEncodeError:
            return False
        room = sum(len(content) + 2 * 4096 for content in self.files.values())
        few = len(self.files) <= _PLAIN_FILES and names == set(self.files) and not names & parents
        return (
            plain and few and sum(sizes) <= _PLAIN_ARGUMENTS and room <= self.limits.disk_bytes // 2
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the program; none comes from the host."""
        return variables(WORK)

    @property
    def links(self) -> dict[str, str]:
        """System directories that are links on this host, and where they point to."""
        return {
            path: os.readlink(path)
            for path in _SYSTEM
            if os.path.islink(path) and path[1:4] != "etc"
        }

    @property
    def binds(self) -> tuple[str, ...]:
        """Paths of the host to show inside, read only, the shorter first."""
        paths = [path for path in _SYSTEM if os.path.exists(path) and path not in self.links]
        if self.python:
            paths += [str(Path(self.python).parent.parent)]
        paths += [os.path.realpath(path) for path in self.readable]
        covered = sorted(set(paths), key=len)
        return tuple(
            path
            for index, path in enumerate(covered)
            if not any(Path(path).is_relative_to(other) for other in covered[:index])
        )


def variables(directory: str) -> dict[str, str]:
    """The environment of a program that works in `directory`; hashes, and so sets, have a fixed order."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": directory,
        "TMPDIR": directory,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
    }


def own_python() -> str:
    """The interpreter that runs us, outside of any virtual environment."""
    return os.path.realpath(sys.executable)


def open_to_all(path: str) -> bool:
    """True if any user may read below `path`; otherwise only a level that mounts it as root can show it."""
    wanted = stat.S_IXOTH | stat.S_IROTH
    return all(os.stat(p).st_mode & stat.S_IXOTH for p in Path(path).parents) and (
        os.stat(path).st_mode & wanted == wanted
    )
