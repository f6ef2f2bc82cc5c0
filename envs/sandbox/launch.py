"""The program that confines itself and becomes the sandboxed one; run as a script, it imports none of ours.

    python -I -S launch.py JOB_FD STATUS_FD

Flows in: a job, marshalled, since what is imported here is most of a short run's time. Flows out, as lines
of JSON on STATUS_FD: `child-pid` (the first process of the sandbox, as the host counts), then `exit-code`, or
`error` where it could not be set up. Levels: `landlock` and `none`. The program runs in the host's world;
this process stays as supervisor and ends all that is left. It refuses to outlive its parent.
"""

import contextlib
import ctypes
import errno
import marshal
import os
import resource
import signal
import stat
import struct
import sys
import time

TYPE_CHECKING = False  # of our own: `typing` takes longer to import than a short run has
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypedDict

    class Limits(TypedDict):
        """As `envs.sandbox.limits.Limits`."""

        memory_bytes: int
        file_bytes: int
        processes: int
        cpu_seconds: int

    class Job(TypedDict):
        """As `envs.sandbox.confinement` marshals it."""

        level: str
        argv: tuple[str, ...]
        files: dict[str, bytes]
        limits: Limits
        binds: tuple[str, ...]
        devices: tuple[str, ...]
        uid: int | None
        environment: dict[str, str]
        work: str
        filter: bytes
        keep_fd: int
        parent: int

    Tell = Callable[[str, int | str], None]

libc = ctypes.CDLL(None, use_errno=True)
PDEATHSIG, SECCOMP, SUBREAPER, NO_NEW_PRIVS = 1, 22, 36, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0, more: object = 0) -> None:
    more = ctypes.c_ulong(more) if isinstance(more, int) else more
    done = libc.prctl(option, ctypes.c_ulong(value), more, ctypes.c_ulong(0), ctypes.c_ulong(0))
    check(done, f"prctl {option}")


def die_with(parent: int, sign: int) -> None:
    prctl(PDEATHSIG, sign)
    if os.getppid() != parent:
        os._exit(1)


def become(uid: int | None) -> None:
    """Give up root for good."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def limit(job: "Job") -> None:
    """Bounds that the kernel keeps for each process."""
    limits = job["limits"]
    kept = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if job["uid"] is not None:
        kept[resource.RLIMIT_NPROC] = limits["processes"]
    for which, most in kept.items():
        highest = resource.getrlimit(which)[1]
        most = most if highest == resource.RLIM_INFINITY else min(most, highest)
        resource.setrlimit(which, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))


def filter_calls(program: bytes) -> None:
    if program:
        code = ctypes.create_string_buffer(program)
        head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        prctl(SECCOMP, 2, ctypes.create_string_buffer(head))


def start(job: "Job", environment: dict[str, str]) -> None:
    """Become the program. Whatever was opened on the way here stays behind."""
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    filter_calls(job["filter"])
    keep = job["keep_fd"]
    os.closerange(3, max(3, keep))
    os.closerange(max(3, keep + 1), 4096)
    try:
        os.execvpe(job["argv"][0], job["argv"], environment)
    except (OSError, ValueError) as error:
        fail(job["argv"][0], error, 127)


def fail(name: str, error: OSError | ValueError, code: int) -> None:
    """End as a program that was asked for something impossible."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    os.write(2, f"{name[:200]}: {said}\n".encode(errors="backslashreplace"))
    os._exit(code)


# A name that no file can have: its own error, unlike a full disk of the host.
IMPOSSIBLE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL}


def make_folders(name: str) -> None:
    """Make the folders above a file; `os.makedirs` calls itself for each, and there can be thousands."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(name)  # too long as a whole: said before thousands of folders are made
    parts = name.split("/")
    for depth in range(1, len(parts)):
        with contextlib.suppress(FileExistsError):
            os.mkdir("/".join(parts[:depth]))


def write_files(job: "Job") -> None:
    """Make the program's files, as its user, in the current directory."""
    for name, content in job["files"].items():
        try:
            make_folders(name)
            with open(name, "wb") as file:
                file.write(content)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in IMPOSSIBLE:
                raise
            fail(name, error, 126)


# What may not stand in a JSON string as it is.
UNQUOTED = dict.fromkeys([*range(32), ord('"'), ord("\\")], " ")


class Ended(BaseException):
    """The parent is gone, or asks for the end."""


def supervised(job: "Job", tell: "Tell") -> int:
    """Start the program as a child and, when it ends or is to end, end all it started."""
    prctl(SUBREAPER, 1)
    if job["uid"] is not None:
        os.chown(job["work"], job["uid"], job["uid"])
    here = os.getpid()
    program = os.fork()
    if program == 0:
        os.setpgid(0, 0)
        in_child(tell, lambda: confine(job, here))

    def on_end(*_: object) -> None:
        raise Ended

    code = 128 + signal.SIGKILL
    try:
        signal.signal(signal.SIGTERM, on_end)
        tell("child-pid", program)
        code = wait_for(program)
    except Ended:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_all(job["uid"])
        remove(job["work"])
    return code


def confine(job: "Job", supervisor: int) -> None:
    os.chdir(job["work"])
    become(job["uid"])
    die_with(supervisor, signal.SIGKILL)
    write_files(job)
    limit(job)
    prctl(NO_NEW_PRIVS, 1)
    if job["level"] == "landlock":
        landlock(job)
    start(job, job["environment"])


def landlock_version() -> int:
    """The kernel's version of Landlock; 0 where it has none."""
    return max(0, libc.syscall(CREATE_RULESET, None, ctypes.c_ulong(0), ctypes.c_ulong(1)))


def landlock(job: "Job") -> None:
    """Files below the readable paths may be read, those in the working directory changed, others nothing."""
    abi = landlock_version()
    every = (1 << 13) - 1 | 1 << 13 | 1 << 14 | (1 << 15 if abi >= 5 else 0)
    rules = [every, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0]
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = check(libc.syscall(CREATE_RULESET, struct.pack("QQQ", *rules), size, 0), "landlock")
    on_files = 1 | 2 | 4 | 1 << 14
    allowed = dict.fromkeys(job["binds"], 1 | 4 | 8)
    allowed |= dict.fromkeys(job["devices"], 2 | 4) | {job["work"]: every}
    for path, access in allowed.items():
        held = os.open(path, os.O_PATH)
        if not stat.S_ISDIR(os.fstat(held).st_mode):
            access &= on_files
        done = libc.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", access, held), 0)
        check(done, f"landlock {path}")
        os.close(held)
    check(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock")


def end_all(uid: int | None) -> None:
    """Kill what the program left until there is nothing left to wait for."""
    while alive():
        if uid is not None:
            killer = os.fork()
            if killer == 0:
                become(uid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
                os._exit(0)
        else:
            for number in children_of(os.getpid()):
                with contextlib.suppress(OSError):
                    os.kill(number, signal.SIGKILL)
        time.sleep(0.002)  # for the dead to become waitable; what forked meanwhile is killed next


def alive() -> bool:
    """Bury the dead; whether a child is left. Orphans become our children."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def children_of(parent: int) -> list[int]:
    """Every process below `parent`."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        with (
            contextlib.suppress(OSError, ValueError),
            open(f"/proc/{int(name)}/stat", encoding="utf-8", errors="replace") as file,
        ):
            parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found, added = {parent}, True
    while added:
        new = {child for child, above in parents.items() if above in found} - found
        found, added = found | new, bool(new)
    return sorted(found - {parent})


def remove(directory: str) -> None:
    """Delete a tree that a stranger made: of any depth, with any permissions."""
    chmod = ["chmod", "-R", "u+rwx", "--", directory] if os.getuid() else []
    for command in (chmod, ["rm", "-rf", "--", directory]):
        if command:
            quiet = [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
            environment = {"PATH": "/usr/bin:/bin"}
            os.waitpid(os.posix_spawnp(command[0], command, environment, file_actions=quiet), 0)


def in_child(tell: "Tell", act: "Callable[[], None]") -> None:
    """Run what ends in another program; what fails before is told, not raised into the parent's code."""
    try:
        act()
    except BaseException as error:
        tell("error", f"{type(error).__name__}: {error}")
    os._exit(1)


def wait_for(program: int) -> int:
    """The program's exit code, as a shell gives it. Buries orphans meanwhile."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main() -> None:
    status = int(sys.argv[2])
    os.set_inheritable(status, False)
    with open(int(sys.argv[1]), "rb") as file:
        job = marshal.load(file)

    def tell(name: str, value: int | str) -> None:
        text = str(value) if isinstance(value, int) else '"' + value.translate(UNQUOTED) + '"'
        os.write(status, f'{{"{name}": {text}}}\n'.encode(errors="replace"))

    # SIGTERM and not SIGKILL: this process has to live to end what the program left behind.
    die_with(job["parent"], signal.SIGTERM)
    try:
        code = supervised(job, tell)
    except BaseException as error:
        tell("error", f"{type(error).__name__}: {error}")
        os._exit(1)
    tell("exit-code", code)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
