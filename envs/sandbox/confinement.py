"""One run at one level: the command that confines, the pipes to it, and what its end means."""

import asyncio
import base64
import json
import marshal
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from envs.sandbox import bubblewrap, collect, launch, seccomp, unpack
from envs.sandbox.job import DEVICES, Job, open_to_all, own_python, variables
from envs.sandbox.level import LevelName
from envs.sandbox.limits import Limits
from envs.sandbox.process import Command, Ended, run_process
from envs.sandbox.result import Result, Status
from envs.sandbox.uid_range import NoUid, own_uid

_COLLECT = Path(collect.__file__).read_text(encoding="utf-8")
_UNPACK = Path(unpack.__file__).read_text(encoding="utf-8")
_XCPU = 128 + 24
# More runs of a process at once would only make each other slow, and pass limits that are of the clock.
_AT_ONCE = 4 * (os.cpu_count() or 1)
_places: "WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Work:
    """One run's input: the program, its files, its standard input, the names of the files to hand out."""

    argv: tuple[str, ...]
    files: Mapping[str, bytes]
    stdin: bytes
    keep: tuple[str, ...]
    limits: Limits
    readable: tuple[str, ...]


def python_at(level: LevelName) -> str:
    """The interpreter to use at a level: ours, or the system's where a program cannot reach ours."""
    own = own_python()
    if os.getuid() != 0 or level == "bubblewrap" or open_to_all(own):
        return own
    for other in ("/usr/local/bin/python3", "/usr/bin/python3"):
        if os.path.exists(other) and open_to_all(os.path.realpath(other)):
            return os.path.realpath(other)
    return own


async def run_confined(level: LevelName, work: Work) -> Result:
    """Run it, waiting for a place first; the waiting counts as none of its seconds."""
    places = _places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE))
    async with places:
        try:
            with own_uid() as uid:
                job = _job(level, work, uid)
                async with _command(level, job, work.keep) as command:
                    ended = await run_process(command, work.limits, work.stdin)
        except (OSError, NoUid) as error:
            sentence = f"{type(error).__name__}: {error}"
            return Result("infra", "", "", -1, 0.0, level, sentence)
    return _result(level, ended)


def _job(level: LevelName, work: Work, uid: int | None) -> Job:
    return Job(work.argv, work.files, work.limits, work.readable, uid, python_at(level))


@asynccontextmanager
async def _command(level: LevelName, job: Job, keep: tuple[str, ...]):
    """Yield the command to start, with its pipes; releases our ends, and the directory on the host, if
    any."""
    with ExitStack() as held:
        status, status_end = _pipe(held)
        files, files_end = _pipe(held) if keep else (None, -1)
        if keep:
            names, most = json.dumps(keep), str(job.limits.disk_bytes)
            python = (job.python, "-I", "-S", "-c", _COLLECT, str(files_end), most, names)
            job = replace(job, argv=(*python, *job.argv))
        filtered = seccomp.program(shared=level == "landlock", signals=_may_signal(level, job))
        if not seccomp.supported() or level == "none":
            filtered = b""
        own_world = level == "bubblewrap"
        directory = None if own_world else tempfile.mkdtemp(prefix="dorado-sandbox-")
        handed = [status_end] + ([files_end] if keep else [])
        if directory is None:
            if not job.plain:
                packed = _memory_file(marshal.dumps((dict(job.files), job.argv)))
                handed += [packed]
                argv = (job.python, "-I", "-S", "-c", _UNPACK, str(packed))
                job = replace(job, argv=argv, files={})
            filter_fd = _memory_file(filtered) if filtered else None
            file_fds = {name: _memory_file(content) for name, content in job.files.items()}
            handed += [*([] if filter_fd is None else [filter_fd]), *file_fds.values()]
            argv = bubblewrap.command(
                job, status_fd=status_end, filter_fd=filter_fd, file_fds=file_fds
            )
        else:
            job_fd = _memory_file(_marshalled(level, job, filtered, directory, files_end))
            handed += [job_fd]
            argv = [own_python(), "-I", "-S", launch.__file__, str(job_fd), str(status_end)]
        uncounted = not own_world and job.uid is None
        try:
            yield Command(argv, tuple(handed), status, files, own_world, directory, uncounted)
        finally:
            if directory is not None and os.path.exists(directory):
                await asyncio.to_thread(launch.remove, directory)


def _may_signal(level: LevelName, job: Job) -> bool:
    """Without a user or a namespace of its own, or Landlock's word on it, a signal could hit anyone's."""
    return level != "landlock" or job.uid is not None or launch.landlock_version() >= 6


def _marshalled(level: LevelName, job: Job, filtered: bytes, directory: str, keep: int) -> bytes:
    fields = {
        "level": level,
        "argv": job.argv,
        "files": dict(job.files),
        "limits": asdict(job.limits),
        "binds": job.binds,
        "devices": DEVICES,
        "uid": job.uid,
        "environment": variables(directory),
        "work": directory,
        "filter": filtered,
        "keep_fd": keep,
        "parent": os.getpid(),
    }
    return marshal.dumps(fields)


def _result(level: LevelName, ended: Ended) -> Result:
    stdout, stderr = (text.decode(errors="replace") for text in (ended.stdout, ended.stderr))
    status, detail = _meaning(ended, stderr)
    code = -1 if ended.exit_code is None or ended.passed else ended.exit_code
    files: dict[str, bytes] = {}
    if status not in ("infra", "output") and ended.files:
        try:
            files = {n: base64.b64decode(text) for n, text in json.loads(ended.files).items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            files = {}  # the program wrote on the pipe itself
    return Result(status, stdout, stderr, code, ended.seconds, level, detail, files)


def _meaning(ended: Ended, stderr: str) -> tuple[Status, str]:
    code = ended.exit_code
    last = stderr.rstrip().rpartition("\n")[2]
    if ended.passed is not None:
        return ended.passed.status, str(ended.passed)
    if ended.error or code is None:
        return "infra", ended.error or last or "the sandbox's own process was killed"
    if code == 0:
        return "ok", ""
    if code == _XCPU:
        return "timeout", "processor seconds used up"
    if last.startswith("MemoryError"):
        return "memory", "a process wanted more memory than it may have"
    if code > 128:
        return "killed", f"ended by signal {code - 128}"
    return "error", f"ended with code {code}"


def _pipe(held: ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    held.callback(os.close, read)
    return read, write


def _memory_file(content: bytes) -> int:
    fd = os.memfd_create("dorado")
    with open(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def lacks(level: LevelName) -> str:
    """Name what this machine visibly lacks for a level, before anything is tried; "" if nothing."""
    if level == "bubblewrap":
        return bubblewrap.missing()
    if level == "landlock":
        if not seccomp.supported():
            return f"the system calls of {platform.machine()} are not known here"
        if launch.landlock_version() < 3:
            return "the kernel has no Landlock, or one before Linux 6.2 (version 3)"
        if shutil.which("rm") is None:
            return "rm is not installed"
        python = python_at(level)
        if os.getuid() == 0 and not open_to_all(python):
            return f"other users cannot execute {python}, and no other Python is under /usr"
    return ""
