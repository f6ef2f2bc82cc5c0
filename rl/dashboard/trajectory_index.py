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
from rl.dashboard.trajectory_filter import TEXTS, TrajectoryFilter

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


def _hits_of(
    folder: Path,
    asked: TrajectoryFilter,
    texts: Path | None,
    question: str,
    values: Sequence[float | str],
) -> list[tuple]:
    """Rows of a question whose condition is that of the filter; texts: the text index, where there is one."""
    if not asked.text:
        return ask(folder, question, values)
    if texts is None or not texts.is_file():
        return []
    return ask(folder, question, values, (texts, TEXTS))


def hits(folder: Path, asked: TrajectoryFilter, texts: Path | None = None) -> list[Hit]:
    """One page of hits in the order that is asked for. texts: the text index, which `text` needs."""
    where, values = asked.where()
    way = "asc" if asked.lowest_first else "desc"
    rows = _hits_of(
        folder,
        asked,
        texts,
        f"select {_COLUMNS} from trajectories where {where} order by {asked.key} {way}, rowid {way} "
        "limit ? offset ?",
        [*values, PAGE_ROWS, (asked.page - 1) * PAGE_ROWS],
    )
    return [_hit(row) for row in rows]


def first_rows(
    folder: Path, condition: str, values: Sequence[float | str], most: int, order: str = "rowid"
) -> list[Hit]:
    """The first `most` rows of a condition, both in SQL; for who reads the index without a page."""
    question = f"select {_COLUMNS} from trajectories where {condition} order by {order} limit ?"
    return [_hit(row) for row in ask(folder, question, [*values, most])]


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


def beside(
    folder: Path, asked: TrajectoryFilter, one: Hit, texts: Path | None = None, *, forward: bool
) -> str | None:
    """The id of the next trajectory in the filter's order, or of the one before; None at the end."""
    where, values = asked.where()
    up = asked.lowest_first == forward
    rows = _hits_of(
        folder,
        asked,
        texts,
        f"select id from trajectories where {where} and ({asked.key}, rowid) {'>' if up else '<'} "
        f"(select {asked.key}, rowid from trajectories where rowid = ?) "
        f"order by {asked.key} {'asc' if up else 'desc'}, rowid {'asc' if up else 'desc'} limit 1",
        [*values, one.row],
    )
    return _text(rows[0][0]) if rows else None


def tally(folder: Path, asked: TrajectoryFilter, texts: Path | None = None) -> Tally:
    """Count the hits of a filter, and their rewards by bars."""
    # The condition, which may be a search, is looked at once. Rewards that are no finite number have no bar;
    # one value gets one bar; the last bar takes the highest value in.
    where, values = asked.without_rewards().where()
    rows = _hits_of(
        folder,
        asked,
        texts,
        f"with hit as materialized (select case when {_FINITE} then reward end as r from trajectories "
        f"where {where}), ends as (select min(r) as low, max(r) as high from hit) "
        "select case when r is null then null when high > low "
        f"then min(cast((r - low) / (high - low) * {BINS} as integer), {BINS - 1}) else 0 end as bar, "
        "min(r), max(r), count(*) from hit, ends group by bar order by bar",
        values,
    )
    bars = tuple(RewardBar(*rest) for bar, *rest in rows if bar is not None)
    if asked == asked.without_rewards():
        return Tally(sum(count for *_, count in rows), bars)
    where, values = asked.where()
    found = _hits_of(
        folder, asked, texts, f"select count(*) from trajectories where {where}", values
    )
    return Tally(found[0][0] if found else 0, bars)


def tries(folder: Path, one: Hit, most: int = 200) -> list[Hit]:
    """All trajectories of a trajectory's task, those of the oldest policy version first."""
    rows = ask(
        folder,
        f"select {_COLUMNS} from trajectories where task = ? and env = ? "
        "order by coalesce(last_version, -1), rowid limit ?",
        [one.task, one.env, most],
    )
    return [_hit(row) for row in rows]


def says_what_it_trained_on(folder: Path) -> bool:
    """True if the index knows by step which trajectories were trained on."""
    if not ask(folder, "select 1 from sqlite_master where name = 'learned'"):
        return False
    return bool(ask(folder, "select 1 from learned limit 1"))


def fault_counts(folder: Path) -> list[tuple[str, str, str, int, str]]:
    """(environment, stop reason, fault, how often, the newest trajectory) of faults, the most frequent first.

    A fault's text is its first 300 letters.
    """
    rows = ask(
        folder,
        "select env, stop_reason, substr(fault, 1, 300), count(*), max(rowid) from trajectories "
        "where coalesce(fault, '') != '' group by 1, 2, 3 order by 4 desc limit 500",
    )
    newest = ",".join(str(row) for *_, row in rows)
    ids = dict(ask(folder, f"select rowid, id from trajectories where rowid in ({newest})"))
    return [(_text(e), _text(s), _text(f), n, _text(ids.get(row, ""))) for e, s, f, n, row in rows]


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
    return mark_of(folder / "trajectories.sqlite")


def mark_of(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """Mark of a database of SQLite and its log."""
    return tuple(_written(path.with_name(path.name + end)) for end in ("", "-wal"))


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
