"""Packs: a folder of domains and verified tasks, read one task at a time.

    pack.json          format, digest of the content, what it was made from, counts
    domains/NAME.json  the domains, as they were
    tasks.sqlite       one row per task: id, domain, structure, the task as compressed JSON
    verification.json  tries by outcome, tools used, lengths of chains, per domain
    README.md          the data card

In: a folder. Out: `Pack`, whose tasks are read on demand, so that its memory does not grow with it. A folder
that is no whole pack is refused as PackMistake: it takes its final name only when it is complete
(`rl/env_tools/generate.py`)."""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from envs.generated.domain import Domain
from envs.generated.domain_file import DomainMistake, load
from envs.generated.task_data import GeneratedTask

FORMAT = 1


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
        except OSError:
            raise PackMistake(f"{folder} is no pack: it has no pack.json") from None
        except ValueError as error:
            raise PackMistake(f"{folder / 'pack.json'} is no JSON: {error}") from None
        if self.sheet.get("format") != FORMAT:
            raise PackMistake(
                f"{folder} is a pack of format {self.sheet.get('format')}, and this version reads "
                f"format {FORMAT}: generate it again"
            )
        if not (folder / "tasks.sqlite").is_file():
            raise PackMistake(f"{folder} is no whole pack: tasks.sqlite is missing")

    @property
    def digest(self) -> str:
        """A hash of its content, 16 digits; tasks name it."""
        return self.sheet["digest"]

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """Its domains, by name. Raises PackMistake."""
        try:
            found = [load(path) for path in sorted((self.folder / "domains").glob("*.json"))]
        except DomainMistake as error:
            raise PackMistake(f"{self.folder}: {error}") from None
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
        data = json.loads(zlib.decompress(row[0]))
        return GeneratedTask.of_json(self.domains[data["domain"]], data)

    def _open(self) -> "_Reading":
        return _Reading(self.folder / "tasks.sqlite")


class _Reading:
    """A connection for one look, closed after it: an episode's host forks, is killed, and holds no file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> sqlite3.Connection:
        self.db = sqlite3.connect(f"file:{self.file}?mode=ro&immutable=1", uri=True)
        return self.db

    def __exit__(self, *error: object) -> None:
        self.db.close()


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
