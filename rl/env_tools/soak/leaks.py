"""Finds what hosts have left behind, by their censuses and by the processes that outlived them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from rl.env_tools.soak.figures import Left
from rl.env_tools.soak.host import Census


def left(base: Sequence[Census], now: Sequence[Census], *, orphans: int = 0) -> Left:
    """Compute what is left in the worst of the hosts, each against itself; a new process against any of
    them."""
    before = {one.pid: one for one in base}

    def most(count: Callable[[Census], float], *, grown: bool) -> float:
        return max(
            count(one) - (count(before.get(one.pid, base[0])) if grown else 0) for one in now
        )

    return Left(
        sessions=int(most(lambda c: c.sessions, grown=False)),
        environments=int(most(lambda c: c.environments, grown=False)),
        tool_threads=int(most(lambda c: c.tool_threads, grown=False)),
        tasks=int(most(lambda c: c.tasks, grown=True)),
        processes=int(most(lambda c: c.processes, grown=True)),
        orphans=orphans,
        files=int(most(lambda c: c.files, grown=True)),
        threads=int(most(lambda c: c.threads, grown=True)),
        temporary=int(most(lambda c: len(c.temporary), grown=True)),
        memory_mib=round(most(lambda c: c.memory_mib, grown=True), 1),
    )


def given(folder: Path) -> list[psutil.Process]:
    """Processes whose $TMPDIR is in this folder: a host's, and all it started, whoever their parent."""

    def temporary(process: psutil.Process) -> Path:
        try:
            return Path(process.environ().get("TMPDIR", ""))
        except (psutil.Error, OSError):
            return Path()

    return [p for p in psutil.process_iter() if temporary(p).is_relative_to(folder)]


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
