"""The session folder of a local run, `/tmp/ray-UID/RUN`: Ray's files and vLLM's sockets, for this user alone.

While the run lives it holds a lock (`flock`) on `RUN.owner` beside the folder, and all its processes carry
RUN in their environment. The next run of this user finds owners that nobody holds, however they ended. It
ends the processes that were left, and removes their shared memory and the folder.
"""

import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "DORADO_SESSION"
OWNER = ".owner"
_SHARED = "/dev/shm/psm_"

# The locks that this process holds, by owner file, as open descriptors.
_held: dict[Path, int] = {}


def user_folder() -> Path:
    """The folder of this user's sessions. Raises RuntimeError where another user has put something there."""
    folder = Path(f"/tmp/ray-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise RuntimeError(f"{folder} is not a folder of this user: have it removed")
    folder.chmod(0o700)
    return folder


def guard_token() -> None:
    """Let nobody else read the token file that Ray makes for this user, with the modes of the day."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = Path(named) if named else Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        if token.lstat().st_uid == os.getuid() and token.stat().st_mode & 0o077:
            token.chmod(0o600)


def open_session(parent: Path) -> Path:
    """Make this run's session folder in `parent`, and mark the processes that it will start.

    First what runs that are gone have left there is removed.
    """
    remove_leftovers(parent)
    folder = parent / f"{os.getpid()}-{uuid.uuid4().hex[:3]}"
    owner = folder.with_suffix(OWNER)
    descriptor = os.open(owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    _held[folder] = descriptor
    folder.mkdir(mode=0o700)
    os.environ[MARK] = folder.name
    # Its sockets would lie in /tmp, and nobody could say whose they are.
    os.environ["VLLM_RPC_BASE_PATH"] = str(folder)
    return folder


def note_shared_memory(folder: Path, files: Iterable[str]) -> None:
    """Write down shared memory of the run, for whoever cleans up if the run cannot."""
    with suppress(OSError):
        folder.with_suffix(OWNER).write_text(json.dumps(sorted(files)), encoding="utf-8")


def close_session(folder: Path) -> None:
    """Let go of the session; its folder stays to be looked at until the next run."""
    if (descriptor := _held.pop(folder, None)) is not None:
        os.close(descriptor)
    for name in (MARK, "VLLM_RPC_BASE_PATH"):
        os.environ.pop(name, None)


def remove_leftovers(parent: Path) -> None:
    """Remove what runs that are gone have left in `parent`, and their processes and shared memory."""
    for owner in parent.glob(f"*{OWNER}"):
        # Cleanup of other runs is best effort: it keeps no run from starting.
        with suppress(OSError, psutil.Error):
            _remove(owner)


def _remove(owner: Path) -> None:
    with owner.open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        try:
            noted = json.loads(file.read() or "[]")
        except ValueError:
            noted = []
        left = marked(owner.stem)
        files = {*shared_memory(left), *map(str, noted)}
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        remove_shared_memory(files)
        shutil.rmtree(owner.with_suffix(""), ignore_errors=True)
        owner.unlink(missing_ok=True)


def marked(session: str) -> list[psutil.Process]:
    """Find the processes of this user that carry a session's mark."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == session:
                found.append(process)
    return found


def shared_memory(processes: Iterable[psutil.Process]) -> set[str]:
    """Paths of the shared memory of Python's kind that these processes have mapped."""
    found: set[str] = set()
    for process in processes:
        with suppress(OSError):
            lines = (
                Path(f"/proc/{process.pid}/maps").read_text("utf-8", errors="replace").splitlines()
            )
            found |= {line[line.index(_SHARED) :].split()[0] for line in lines if _SHARED in line}
    return found


def remove_shared_memory(files: Iterable[str]) -> None:
    """Remove shared memory of this user, once its processes have ended."""
    for file in files:
        with suppress(OSError):
            if file.startswith(_SHARED) and os.lstat(file).st_uid == os.getuid():
                os.unlink(file)
