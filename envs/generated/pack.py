"""Packs: a folder of domains and verified tasks, read one task at a time.

    pack.json          format, digest of the content, what it was made from, counts
    domains/NAME.json  the domains, as they were
    tasks.sqlite       one row per task: id, domain, structure, the task as compressed JSON
    verification.json  tries by outcome, tools used, lengths of chains, per domain
    README.md          the data card

In: a folder. Out: `Pack`, whose tasks are read on demand, so that its memory does not grow with it. A folder
that is no whole pack is refused as PackMistake: it takes its final name only when it is complete
(`rl/env_tools/packs.py`)."""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from envs.generated.domain import Domain
from envs.generated.domain_file import DomainMistake, load
from envs.generated.task_data import GeneratedTask
from envs.text import told

FORMAT = 2
_SHEET: dict[str, type] = {
    "digest": str, "domains_digest": str, "tasks": int, "seed": int, "domains": list,
}  # fmt: skip


class PackMistake(ValueError):
    """A folder that is no pack, or one of another format; one sentence."""


@dataclass(frozen=True)
class TaskEntry:
    """A line of the index: a task without its content."""

    id: int
    domain: str
    structure: str


class Pack:
    """A pack on disk. Raises PackMistake where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.sheet: dict[str, Any] = json.loads(
                (folder / "pack.json").read_text(encoding="utf-8")
            )
        except OSError as error:
            why = f"it has no pack.json ({error.strerror})"
            raise PackMistake(f"{folder} is no pack: {why}") from None
        except (ValueError, RecursionError) as error:
            raise PackMistake(f"{folder / 'pack.json'} is no JSON: {error}") from None
        _check_sheet(folder, self.sheet)
        self.file = folder / "tasks.sqlite"
        try:
            self.opened = _identity(self.file)
        except OSError as error:
            raise PackMistake(
                f"{folder} is no whole pack: tasks.sqlite is missing ({error.strerror})"
            ) from None
        with self._open() as db:
            held = db.execute("select count(*) from tasks").fetchone()[0]
        if held != self.sheet["tasks"]:
            raise PackMistake(
                f"{self.file} holds {held} tasks, and pack.json says {self.sheet['tasks']}: they are not of "
                "one pack"
            )

    @property
    def digest(self) -> str:
        """A hash of its content, 16 digits; tasks name it."""
        return self.sheet["digest"]

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """Its domains, by name. Raises PackMistake."""
        try:
            found = [load(path) for path in sorted((self.folder / "domains").glob("*.json"))]
            hashed = hash_of(domain.source for domain in found)
        except DomainMistake as error:
            raise PackMistake(f"{self.folder}: {error}") from None
        if hashed != self.sheet["domains_digest"]:
            raise PackMistake(
                f"{self.folder / 'domains'} is not as it was when its tasks were verified: generate the pack "
                "again, from the files that were edited"
            )
        return {domain.name: domain for domain in found}

    def entries(self, domains: Iterable[str] = ()) -> list[TaskEntry]:
        """Its index, of these domains or of all; some 200 bytes a task."""
        asked = set(domains)
        with self._open() as db:
            rows = db.execute("select id, domain, structure from tasks order by id").fetchall()
        return [TaskEntry(*row) for row in rows if not asked or row[1] in asked]

    def task(self, id: int) -> GeneratedTask:
        """One task. Raises PackMistake where there is none of this number."""
        with self._open() as db:
            row = db.execute("select data from tasks where id = ?", (id,)).fetchone()
        if row is None:
            raise PackMistake(
                f"{self.folder} has no task {id}: they go up to {self.sheet['tasks'] - 1}"
            )
        try:
            data = json.loads(zlib.decompress(row[0]))
            return GeneratedTask.of_json(self.domains[data["domain"]], data)
        except (zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, PackMistake):
                raise
            raise PackMistake(f"{self.file}: task {id} is damaged ({told(error)})") from None

    def _open(self) -> "_Reading":
        try:
            now = _identity(self.file)
        except OSError as error:
            raise PackMistake(f"{self.file} is gone: {error.strerror}") from None
        if now != self.opened:
            raise PackMistake(
                f"{self.file} is not the file that this process opened first: a run's pack has to stay as it "
                "is, so give another one another folder"
            )
        return _Reading(self.file)


class _Reading:
    """A connection for one look, closed after it: an episode's host forks, is killed, and holds no file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> sqlite3.Connection:
        place = quote(str(self.file.resolve()))
        self.db = sqlite3.connect(f"file:{place}?mode=ro&immutable=1", uri=True)
        return self.db

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.db.close()
        if isinstance(error, sqlite3.Error):
            raise PackMistake(f"{self.file} cannot be read: {error}") from None


def _check_sheet(folder: Path, sheet: dict[str, Any]) -> None:
    """Raises PackMistake where pack.json is not as `dorado env generate` writes it."""
    held = cast("object", sheet)
    version = sheet.get("format") if isinstance(held, dict) else None
    if version != FORMAT:
        raise PackMistake(
            f"{folder} is a pack of format {version}, and this version reads format {FORMAT}: generate it "
            "again"
        )
    for key, kind in _SHEET.items():
        if not isinstance(sheet.get(key), kind):
            raise PackMistake(
                f"{folder / 'pack.json'}: {key} has to be of type {kind.__name__}, as it was written: "
                "generate the pack again"
            )


def _identity(file: Path) -> tuple[int, int, int]:
    """Return what tells a file from another one at its place. Raises OSError."""
    held = file.stat()
    return held.st_ino, held.st_size, held.st_mtime_ns


def hash_of(sources: Iterable[dict[str, object]]) -> str:
    """A hash of domains, in order: 16 digits."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(json.dumps(source, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def write_tasks(file: Path, tasks: Iterable[dict[str, Any]]) -> tuple[int, str]:
    """Write tasks in order; returns how many, and the digest of all of them."""
    digest = hashlib.sha256()
    count = 0
    db = sqlite3.connect(file)
    try:
        db.execute(
            "create table tasks (id integer primary key, domain text, structure text, data blob)"
        )
        for count, data in enumerate(tasks, start=1):
            text = json.dumps(data, sort_keys=True)
            digest.update(text.encode())
            row = (count - 1, data["domain"], data["structure"], zlib.compress(text.encode(), 6))
            db.execute("insert into tasks values (?, ?, ?, ?)", row)
        db.commit()
    finally:
        db.close()
    return count, digest.hexdigest()[:16]


@cache
def pack_at(folder: str) -> Pack:
    """A pack, opened once per process. Raises PackMistake."""
    return Pack(Path(folder))
