"""The folder of a checkpoint: what it says of itself, and whether it is whole. No torch here.

    step_40/__0_0.distcp, .metadata   the tensors (`trainer.checkpoint`)
    step_40/model/                    config.json, and what the caller adds (the tokenizer)
    step_40/learner.json              `Record`: which model, how far it was; the size of every other file

It is written as `step_40.partial` and renamed when every file is on disk, so a save that is killed at any
moment leaves the checkpoints before it as they are; `latest` passes it over with a sentence.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

# Of the tensors' names and of learner.json; what reads them checks it.
SCHEMA = 1
RECORD = "learner.json"
MODEL = "model"
PARTIAL = ".partial"


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message is one sentence."""


@dataclass(frozen=True)
class Record:
    """learner.json, e.g. `{"schema": 1, "updates": 40, "version": 40, "past_versions": [39], …}`.

    model: the model's config. files: size in bytes of every other file of the folder.
    """

    model: dict[str, Any]
    updates: int
    version: int
    past_versions: list[int]
    files: dict[str, int] = field(default_factory=dict)
    schema: int = SCHEMA


def latest(folder: Path, say: Callable[[str], object]) -> Path | None:
    """The whole checkpoint of the highest step in a folder, or None; `say` hears of each broken one."""
    for _, path in sorted(steps(folder), reverse=True):
        try:
            read_record(path)
        except CheckpointError as error:
            say(f"{error}; passed over")
        else:
            return path
    return None


def steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """The step_N of a folder, whole or not, and the saves that did not end."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if found := re.fullmatch(r"step_(\d+)(\.partial)?", path.name):
            yield int(found.group(1)), path


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` checkpoints of the highest steps, which have to be whole to count, and those
    that a link in the folder points at."""
    whole = [p for _, p in sorted(steps(folder)) if p.suffix != PARTIAL and (p / RECORD).is_file()]
    for path in set(whole[: max(0, len(whole) - keep)]) - linked(folder):
        remove(path)


def linked(folder: Path) -> set[Path]:
    """The checkpoints that the links in a folder point at."""
    links = [path for path in folder.iterdir() if path.is_symlink()] if folder.is_dir() else []
    return {folder / os.readlink(link) for link in links}


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, if it is there."""
    # First the mark: what is left of a removal that is killed is no checkpoint.
    (checkpoint / RECORD).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def read_record(folder: Path) -> Record:
    """Read a checkpoint's record. Raises CheckpointError unless the folder is a whole checkpoint."""
    file = folder / RECORD
    if folder.suffix == PARTIAL:
        raise CheckpointError(f"{folder} is no checkpoint: its save did not end")
    if not file.is_file():
        what = f"it has no {RECORD}" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"{folder} is no checkpoint: {what}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if (schema := values["schema"]) != SCHEMA:
            raise CheckpointError(f"{file} has schema {schema}; this release reads {SCHEMA}")
        record = Record(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!r}") from None
    there = dict(_files(folder))
    for name, size in record.files.items():
        if name not in there:
            raise CheckpointError(f"{folder} is no whole checkpoint: {name} is missing")
        if there[name].stat().st_size != size:
            raise CheckpointError(
                f"{folder} is no whole checkpoint: {name} has {there[name].stat().st_size} bytes, "
                f"{size} were written"
            )
    return record


def make_room(folder: Path, partial: Path) -> None:
    """Remove what earlier saves to this name left; a whole checkpoint stays, and is refused."""
    if (folder / RECORD).is_file():
        raise CheckpointError(f"checkpoint {folder} exists already; nothing was written")
    for broken in (folder, partial):
        if broken.is_dir():
            shutil.rmtree(broken)
    (partial / MODEL).mkdir(parents=True)


def complete(partial: Path, folder: Path, record: Record) -> None:
    """Make a folder that is written a checkpoint: first its record, then its name."""
    files = {name: path.stat().st_size for name, path in _files(partial)}
    with (partial / RECORD).open("w", encoding="utf-8") as file:
        json.dump(asdict(replace(record, files=files)), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(partial)
    partial.rename(folder)
    _sync(folder.parent)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECORD:
            yield path.relative_to(folder).as_posix(), path


def _sync(folder: Path) -> None:
    """Make a folder's entries outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
