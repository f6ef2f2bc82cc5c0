"""Queries to the index of a run's trajectories: hits page by page, their rewards, a group, the one beside.

In: a run folder, whose index may be missing, being written, or hold anything. Out: checked records.
Everything here raises sqlite3.Error where the index cannot be read now; the page says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.dashboard.growing_lines import plain
from rl.dashboard.series import number
from rl.dashboard.trajectory_counts import ask
from rl.dashboard.trajectory_filter import TrajectoryFilter

PAGE_ROWS = 50
# Members of a group that are shown; more of them fit on no screen.
MAX_MEMBERS = 32
BINS = 24
_COLUMNS = (
    "rowid, id, grp, env, split, task, stop_reason, outcome, fault, file, reward, start, seconds, "
    "first_version, last_version, turns, tokens, offset"
)
_FINITE = "typeof(reward) in ('real', 'integer') and abs(reward) < 1e300"


@dataclass(frozen=True)
class Hit:
    """One trajectory as the index has it; a number that is none is None. start: unix seconds."""

    row: int
    id: str
    group: str
    env: str
    split: str
    task: str
    stop_reason: str
    outcome: str
    fault: str
    file: str
    reward: float | None
    start: float | None
    seconds: float | None
    first_version: int | None
    last_version: int | None
    turns: int | None
    tokens: int | None
    offset: int | None

    @property
    def versions(self) -> str:
        """The policy versions that wrote it, such as "3" or "3-5"."""
        if self.first_version is None or self.last_version is None:
            return ""
        one = self.first_version == self.last_version
        return str(self.first_version) if one else f"{self.first_version}-{self.last_version}"


@dataclass(frozen=True)
class RewardBar:
    """Number of trajectories with a reward from `low` to `high`, which are rewards that occur."""

    low: float
    high: float
    trajectories: int


@dataclass(frozen=True)
class Tally:
    """Counts for a filter: the hits, and the rewards, whatever reward the filter asks for."""

    hits: int
    bars: tuple[RewardBar, ...]


@dataclass(frozen=True)
class Choices:
    """Values that occur in the index, to choose from."""

    envs: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()


def hits(folder: Path, asked: TrajectoryFilter) -> list[Hit]:
    """One page of hits in the order that is asked for."""
    where, values = asked.where()
    way = "asc" if asked.lowest_first else "desc"
    rows = ask(
        folder,
        f"select {_COLUMNS} from trajectories where {where} order by {asked.key} {way}, rowid {way} "
        "limit ? offset ?",
        [*values, PAGE_ROWS, (asked.page - 1) * PAGE_ROWS],
    )
    return [_hit(row) for row in rows]


def find(folder: Path, id: str) -> Hit | None:
    """The trajectory of that id."""
    rows = ask(folder, f"select {_COLUMNS} from trajectories where id = ?", [plain(id)])
    return _hit(rows[0]) if rows else None


def group(folder: Path, name: str) -> list[Hit]:
    """Members of a group, in the order of their ids; `MAX_MEMBERS` at most."""
    rows = ask(
        folder,
        f"select {_COLUMNS} from trajectories where grp = ? order by length(id), id limit ?",
        [plain(name), MAX_MEMBERS],
    )
    return [_hit(row) for row in rows]


def beside(folder: Path, asked: TrajectoryFilter, one: Hit, *, forward: bool) -> str | None:
    """The id of the next trajectory in the filter's order, or of the one before; None at the end."""
    where, values = asked.where()
    up = asked.lowest_first == forward
    rows = ask(
        folder,
        f"select id from trajectories where {where} and ({asked.key}, rowid) {'>' if up else '<'} "
        f"(select {asked.key}, rowid from trajectories where rowid = ?) "
        f"order by {asked.key} {'asc' if up else 'desc'}, rowid {'asc' if up else 'desc'} limit 1",
        [*values, one.row],
    )
    return _text(rows[0][0]) if rows else None


def tally(folder: Path, asked: TrajectoryFilter) -> Tally:
    """Count the hits of a filter, and their rewards by bars."""
    where, values = asked.where()
    found = ask(folder, f"select count(*) from trajectories where {where}", values)
    any_reward, values = asked.without_rewards().where()
    source = f"from trajectories where {any_reward} and {_FINITE}"
    ends = ask(folder, f"select min(reward), max(reward) {source}", values)
    low, high = ends[0] if ends else (None, None)
    if low is None or high is None:
        return Tally(found[0][0] if found else 0, ())
    # One value gets one bar; the last bar takes the highest value in.
    scale = BINS / (high - low) if high > low else 0.0
    rows = ask(
        folder,
        f"select min(cast((reward - ?) * ? as integer), ?) as bar, min(reward), max(reward), count(*) "
        f"{source} group by bar order by bar",
        [low, scale, BINS - 1, *values],
    )
    return Tally(found[0][0], tuple(RewardBar(*rest) for _, *rest in rows))


def choices(folder: Path) -> Choices:
    """List the values to filter by."""
    question = "select env, split, stop_reason, outcome from trajectories group by 1, 2, 3, 4"
    rows = ask(folder, question)
    columns = zip(*rows, strict=True) if rows else [()] * 4
    envs, splits, stops, outcomes = (
        tuple(sorted({_text(value) for value in column})) for column in columns
    )
    return Choices(envs, splits, stops, outcomes)


def mark(folder: Path) -> tuple[tuple[int, int] | None, ...]:
    """Mark of the index and its log: while it stays the same, so does every answer."""
    return tuple(_written(folder / f"trajectories.sqlite{end}") for end in ("", "-wal"))


def _written(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def _hit(values: Sequence[object]) -> Hit:
    row, id, group, env, split, task, stop, outcome, fault, file, *numbers = values
    reward, start, seconds, first, last, turns, tokens, offset = numbers
    return Hit(
        row=_whole(row) or 0,
        id=_text(id),
        group=_text(group),
        env=_text(env),
        split=_text(split),
        task=_text(task),
        stop_reason=_text(stop),
        outcome=_text(outcome),
        fault=_text(fault),
        file=_text(file),
        reward=number(reward),
        start=number(start),
        seconds=number(seconds),
        first_version=_whole(first),
        last_version=_whole(last),
        turns=_whole(turns),
        tokens=_whole(tokens),
        offset=_whole(offset),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str:
    return "" if value is None else plain(str(value))
