"""The command line of a run under bubblewrap.

As root, bubblewrap works without a user namespace and the program becomes the run's own user before it
starts: in a user namespace of root's it would count as root, whose processes no limit stops. Otherwise a
user namespace is what makes the rest possible.
"""

import shutil
from pathlib import Path, PurePosixPath

from envs.sandbox.job import DEVICES, WORK, Job

INSTALL = (
    "bubblewrap is not installed (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install "
    "bubblewrap)"
)

# All but the user namespace, which is for whoever is not root.
NAMESPACES = (
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-uts",
    "--unshare-cgroup-try",
)


def missing() -> str:
    """Name what this machine lacks for the level, and how to get it; "" where it lacks nothing."""
    if shutil.which("bwrap") is None:
        return INSTALL
    if shutil.which("prlimit") is None or shutil.which("setpriv") is None:
        return "prlimit and setpriv are not installed (they come with util-linux)"
    return ""


def command(
    job: Job, *, status_fd: int, filter_fd: int | None, file_fds: dict[str, int]
) -> list[str]:
    """Build the command to execute. The file descriptors have to be passed on to it."""
    parts = ["bwrap", "--die-with-parent", "--new-session", "--json-status-fd", str(status_fd)]
    parts += NAMESPACES
    if job.uid is None:
        parts += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    parts += ["--clearenv"]
    for name, value in job.environment.items():
        parts += ["--setenv", name, value]
    parts += _root(job)
    for name, fd in file_fds.items():
        path = f"{WORK}/{PurePosixPath(name)}"
        parents = [str(parent) for parent in reversed(Path(path).parents[:-2])]
        parts += [part for parent in parents for part in ("--perms", "0777", "--dir", parent)]
        parts += ["--perms", "0666", "--file", str(fd), path]
    parts += ["--chdir", WORK, "--remount-ro", "/dev", "--remount-ro", "/", "--cap-drop", "ALL"]
    if job.uid is not None:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            parts += ["--cap-add", capability]
    if filter_fd is not None:
        parts += ["--seccomp", str(filter_fd)]
    return [*parts, "--", *_bounded(job), *job.argv]


def _root(job: Job) -> list[str]:
    """Its directories: the system's read only, a /dev with next to nothing, one place to write."""
    parts = ["--perms", "0777", "--size", str(job.limits.disk_bytes), "--tmpfs", WORK]
    for path in job.binds:
        # Without this bubblewrap makes a directory on the way that only root may enter.
        for parent in reversed(Path(path).parents[:-1]):
            if str(parent) != WORK:
                parts += ["--perms", "0755", "--dir", str(parent)]
        parts += ["--ro-bind", path, path]
    for path, points_to in job.links.items():
        parts += ["--symlink", points_to, path]
    parts += ["--proc", "/proc", "--perms", "0755", "--size", "65536", "--tmpfs", "/dev"]
    for path in DEVICES:
        parts += ["--dev-bind", path, path]
    return [*parts, "--symlink", "/proc/self/fd", "/dev/fd", "--symlink", WORK, "/dev/shm"]


def _bounded(job: Job) -> list[str]:
    """The command that runs inside before the program: it gives up root and sets the limits of each process.

    The limit on processes has to be set inside: there the run's own are counted.
    """
    limits = job.limits
    drop = ["/usr/bin/setpriv", "--no-new-privs"]
    if job.uid is not None:
        drop += ["--reuid", str(job.uid), "--regid", str(job.uid), "--clear-groups"]
        drop += ["--inh-caps=-all", "--bounding-set=-all"]
    return [
        *drop,
        "/usr/bin/prlimit",
        f"--as={limits.memory_bytes}",
        f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 1}",
        f"--fsize={limits.file_bytes}",
        f"--nproc={limits.processes}",
        "--nofile=256",
        "--core=0",
        "--msgqueue=0",
    ]
