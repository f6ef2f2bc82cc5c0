"""The text index of a run: full-text search in its trajectories, and tables of what their tools did.

In: the run's own index, and the records it points to, read once each in the order in which they came. Out:
one SQLite file in a cache, away from the run (`$XDG_CACHE_HOME/dorado/dashboard`), that answers all
questions: `words`, for FTS5; `rows`, the first words of each task and the named rewards; `tools` and
`errors`, counted per environment. It grows a piece at a time while a page that needs it is open, and is begun
anew where it is of another run. Scripts without spaces are searched letter by letter. What is lost here is
read again.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from rl.dashboard.growing_lines import plain
from rl.dashboard.record_text import RecordText, record_text
from rl.dashboard.trajectory_counts import ask
from rl.dashboard.trajectory_filter import spaced
from rl.dashboard.trajectory_index import Hit
from rl.dashboard.trajectory_record import Unreadable, line_at

_SCHEMA = 1
# Rows of a commit. Between two a page may be answered.
_BATCH = 200
# Kinds of error that are told apart in one run; what comes later is counted with its tool only.
_MOST_ERRORS = 2000
# A file that no page has read for so many days is removed when a dashboard starts.
_DAYS = 30
_TABLES = """
create table about (path text, last integer, id text);
create table rows (row integer primary key, words text, rewards text);
create table tools (
    env text, tool text, calls integer, errors integer, timed integer, seconds real, longest real,
    example text, arguments text, primary key (env, tool)
) without rowid;
create table errors (
    env text, tool text, error text, times integer, example text, primary key (env, tool, error)
) without rowid;
create virtual table words using fts5(messages, tools, errors, content='', tokenize='unicode61');
"""
_COUNT = """
insert into tools values (?, ?, 1, ?, ?, ?, ?, ?, ?)
on conflict do update set calls = calls + 1, errors = errors + excluded.errors,
    timed = timed + excluded.timed, seconds = seconds + excluded.seconds,
    longest = max(longest, excluded.longest), example = excluded.example, arguments = excluded.arguments
"""
_COUNT_ERROR = """
insert into errors values (?, ?, ?, 1, ?)
on conflict do update set times = times + 1, example = excluded.example
"""


@dataclass(frozen=True)
class ToolRow:
    """Calls of a tool in an environment. seconds: mean of a call, None where none was timed; longest: the
    longest one. example: the newest trajectory that called it; arguments: of that call."""

    env: str
    tool: str
    calls: int
    errors: int
    seconds: float | None
    longest: float
    example: str
    arguments: str


@dataclass(frozen=True)
class ErrorRow:
    """A kind of error that a tool answered with, how often, and the newest trajectory that has it."""

    env: str
    tool: str
    error: str
    times: int
    example: str


@dataclass(frozen=True)
class RowText:
    """The first words of a trajectory's task, and its named rewards."""

    words: str
    rewards: dict[str, float]


def default_cache() -> Path:
    """The folder of text indexes: `$XDG_CACHE_HOME/dorado/dashboard`, by default in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dorado" / "dashboard"


def remove_old(cache: Path) -> None:
    """Remove the text indexes that nobody has asked for a long time."""
    with suppress(OSError):
        for file in cache.glob("*.sqlite*"):
            if time.time() - file.stat().st_mtime > _DAYS * 86400:
                file.unlink(missing_ok=True)


class TextIndex:
    """The text index of one run folder. Several threads may use it; one at a time lets it grow."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        self.path = cache / f"{name}.sqlite"
        self._lock = threading.Lock()
        self._checked = False

    def grow(self, seconds: float) -> bool:
        """Read more records, for so long. Returns True when all that the run's index has are read.

        Raises sqlite3.Error or OSError where the run's index cannot be read now, or the cache not be written.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            until = time.monotonic() + seconds
            with closing(self._open()) as texts:
                while rows := self._next(texts):
                    self._add(texts, rows)
                    if time.monotonic() >= until:
                        return len(rows) < _BATCH
            return True
        finally:
            self._lock.release()

    def read(self) -> int:
        """The rowid up to which it is read; 0 where nothing is."""
        rows = self._ask("select last from about")
        return int(rows[0][0]) if rows else 0

    def row_texts(self, hits: Sequence[Hit]) -> dict[int, RowText]:
        """Words and rewards by rowid, of those of these trajectories that are read."""
        marks = ",".join("?" * len(hits))
        rows = self._ask(
            f"select row, words, rewards from rows where row in ({marks})",
            [hit.row for hit in hits],
        )
        return {row: RowText(words, json.loads(rewards)) for row, words, rewards in rows}

    def tools(self) -> list[ToolRow]:
        """Calls of all tools, those of an environment together, the most frequent first."""
        rows = self._ask(
            "select env, tool, calls, errors, case when timed then seconds / timed end, longest, example, "
            "arguments from tools order by env, calls desc limit 500"
        )
        return [ToolRow(*row) for row in rows]

    def errors(self) -> list[ErrorRow]:
        """The kinds of error, the most frequent first."""
        rows = self._ask(
            "select env, tool, error, times, example from errors order by times desc limit 200"
        )
        return [ErrorRow(*row) for row in rows]

    def _ask(self, question: str, values: Sequence[object] = ()) -> list[tuple]:
        """Rows; none where there is no index yet."""
        if not self.path.is_file():
            return []
        with closing(sqlite3.connect(self.path, timeout=5)) as texts:
            try:
                return texts.execute(question, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):  # it is being made
                    return []
                raise

    def _open(self) -> sqlite3.Connection:
        """Open it to be written; one of another run or release is begun anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._checked and not self._is_ours():
            for end in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        texts = sqlite3.connect(self.path, timeout=5)
        texts.execute("pragma journal_mode = wal")
        # What a crash loses is read again.
        texts.execute("pragma synchronous = off")
        if texts.execute("pragma user_version").fetchone()[0] != _SCHEMA:
            texts.executescript(_TABLES)
            texts.execute("insert into about values (?, 0, '')", [plain(str(self.folder))])
            texts.execute(f"pragma user_version = {_SCHEMA}")
            texts.commit()
        self._checked = True
        return texts

    def _is_ours(self) -> bool:
        """True if it is of this release and ends with a trajectory that the run's index has there."""
        if not self.path.is_file():
            return False
        try:
            with closing(sqlite3.connect(self.path, timeout=5)) as texts:
                schema = texts.execute("pragma user_version").fetchone()[0]
                found = texts.execute("select last, id from about").fetchall() if schema else []
        except sqlite3.Error:
            return False
        if schema != _SCHEMA or not found:
            return False
        last, id = found[0]
        there = ask(self.folder, "select id from trajectories where rowid = ?", [last])
        return last == 0 or [(id,)] == there

    def _next(self, texts: sqlite3.Connection) -> list[tuple]:
        """The next rows of the run's index."""
        [last] = texts.execute("select last from about").fetchone()
        return ask(
            self.folder,
            "select rowid, id, env, file, offset from trajectories where rowid > ? order by rowid "
            f"limit {_BATCH}",
            [last],
        )

    def _add(self, texts: sqlite3.Connection, rows: Sequence[tuple]) -> None:
        """Take these rows in, all or none of them."""
        [kinds] = texts.execute("select count(*) from errors").fetchone()
        for row, id, env, found in self._records(rows):
            spoken = [spaced(text) for text in (found.messages, found.tools, found.errors)]
            texts.execute(
                "insert into words (rowid, messages, tools, errors) values (?, ?, ?, ?)",
                [row, *spoken],
            )
            texts.execute("insert into rows values (?, ?, ?)", (row, found.words, found.rewards))
            for call in found.calls:
                timed = call.seconds is not None
                seconds = call.seconds or 0.0
                failed = bool(call.error)
                values = (env, call.tool, failed, timed, seconds, seconds, id, call.arguments)
                texts.execute(_COUNT, values)
                if failed and kinds < _MOST_ERRORS:
                    texts.execute(_COUNT_ERROR, (env, call.tool, call.error, id))
        texts.execute("update about set last = ?, id = ?", (rows[-1][0], rows[-1][1]))
        texts.commit()

    def _records(self, rows: Sequence[tuple]) -> Iterator[tuple[int, str, str, RecordText]]:
        """The rows with their records; one whose record cannot be read has none."""
        for row, id, env, file, offset in rows:
            try:
                record = line_at(self.folder, str(file), offset)
            except Unreadable:
                continue
            yield row, plain(str(id)), plain(str(env)), record_text(record)
