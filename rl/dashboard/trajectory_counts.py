"""Questions to trajectories.sqlite, answered without writing anything beside it."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rl.dashboard.growing_lines import plain

# A question that takes longer is given up; the page asks again.
_BUSY_SECONDS = 1.0


@dataclass(frozen=True)
class TrajectoryCount:
    """Counts of one environment and split: trajectories, judged ones, faults, and the mean reward."""

    env: str
    split: str
    trajectories: int
    judged: int
    faults: int
    reward: float | None


def trajectory_counts(folder: Path) -> list[TrajectoryCount]:
    """Per environment and split; nothing without an index. Raises sqlite3.Error: not to be read now."""
    rows = ask(
        folder,
        "select env, split, count(*), count(reward), sum(coalesce(fault, '') != ''), avg(reward) "
        "from trajectories group by env, split order by env, split",
    )
    return [TrajectoryCount(str(plain(e)), str(plain(s)), *rest) for e, s, *rest in rows]


def ask(
    folder: Path,
    question: str,
    values: Sequence[float | str] = (),
    attached: tuple[Path, str] | None = None,
) -> list[tuple]:
    """Rows; none without an index. Raises sqlite3.Error: no such table, or not to be read now.

    attached: another database that is only read, and its name in the question.
    """
    path = folder / "trajectories.sqlite"
    if not path.is_file():
        return []
    # Without a log beside it nobody writes the index. `immutable` then keeps SQLite from making files of
    # its own there, which a reader of a write-ahead log otherwise does.
    live = path.with_name(path.name + "-wal").exists()
    address = f"file:{quote(str(path.resolve()))}?" + ("mode=ro" if live else "immutable=1")
    index = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS)
    try:
        index.text_factory = lambda text: text.decode(errors="replace")
        if attached is not None:
            other, name = attached
            index.execute(f"attach ? as {name}", [f"file:{quote(str(other))}?mode=ro"])
        return index.execute(question, values).fetchall()
    finally:
        index.close()
