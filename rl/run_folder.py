"""The run folder: everything a dashboard, a resume or a replay needs, in files that only grow.

config.toml          resolved settings          checkpoints/step_N/   the learner's state
metrics.jsonl        one line per step          logs/                 one file per actor
events.jsonl         spans of time (Gantt)      trajectories/         JSONL, one file per controller
trajectories.sqlite  index of the trajectories  summary.json          written at the end
status.json          what the run does now
"""

import fcntl
import json
import math
import sqlite3
import time
from pathlib import Path
from typing import Any

import tomli_w

from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.group import GroupReport
from rollout.trajectory import ScoredTrajectory

# Of trajectories.sqlite and the records it points to; what reads them checks it.
INDEX_SCHEMA = 1
_INDEX = """
create table trajectories (
    id text primary key, grp text, env text, split text, task text, stop_reason text, reward real,
    outcome text, first_version integer, last_version integer, turns integer, tokens integer,
    completion_tokens integer, start real, seconds real, fault text, file text, offset integer
)
"""


class TrajectoryWriter:
    """Appends trajectories to one controller's file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = f"trajectories/{name}.jsonl"
        self._out = (folder / self.file).open("ab")

    def write(self, scored: ScoredTrajectory) -> tuple[str, int]:
        """Append one line. Returns the file (relative to the run folder) and the byte offset."""
        offset = self._out.tell()
        self._out.write(scored.as_json().encode() + b"\n")
        self._out.flush()
        return self.file, offset


class RunFolder:
    """The run's own end of the folder."""

    def __init__(self, config: RunConfig) -> None:
        """Create the folder; one that is there already is kept under a name with its date.

        Raises ConfigError where a run in progress holds the folder.
        """
        self.path = config.folder
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Held for the life of this process, on a file beside the folder, which may move.
        self._lock = (self.path.parent / f".{self.path.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"name: a run called {config.name!r} is in progress in {config.runs_dir}; "
                "give this one another with --name"
            ) from None
        self.kept = _set_aside(self.path)
        for sub in ("trajectories", "checkpoints", "logs"):
            (self.path / sub).mkdir(parents=True, exist_ok=True)
        (self.path / "config.toml").write_text(dump_toml(config))
        self._metrics = (self.path / "metrics.jsonl").open("a")
        self._events = (self.path / "events.jsonl").open("a")
        self._index = sqlite3.connect(self.path / "trajectories.sqlite")
        self._index.execute("pragma journal_mode=wal")
        self._index.execute(f"pragma user_version = {INDEX_SCHEMA}")
        # A commit per group must not wait for the disk. A crash of the process loses nothing; one of the
        # machine may lose the last rows, whose trajectories are in their files.
        self._index.execute("pragma synchronous=normal")
        self._index.execute(_INDEX)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl; what is not a number is left out."""
        finite = {
            k: v for k, v in values.items() if not (isinstance(v, float) and not math.isfinite(v))
        }
        self._line(self._metrics, {"step": step, "time": time.time(), **finite})

    def event(self, lane: str, name: str, start: float, end: float, **details: Any) -> None:
        """A span of time in a lane of the Gantt chart (unix seconds)."""
        record = {"lane": lane, "name": name, "start": start, "end": end, **details}
        self._line(self._events, record)

    def index(self, report: GroupReport, split: str) -> None:
        """Add a group's trajectories to the index."""
        outcome = {id: f"{d.outcome}:{d.reason}" for d in report.dropped for id in d.ids}
        task = report.spec.task.id
        rows = [
            (
                m.id,
                report.spec.id,
                report.spec.env,
                split,
                task,
                m.stop_reason,
                m.reward if m.judged else None,
                outcome.get(m.id, "sample" if m.id in report.sample_ids else ""),
                min(m.versions, default=None),
                max(m.versions, default=None),
                m.num_turns,
                m.num_tokens,
                m.num_completion_tokens,
                report.start,
                sum(m.phase_seconds.values()),
                m.fault,
                m.file,
                m.offset,
            )
            for m in report.members
        ]
        marks = ",".join("?" * 18)
        self._index.executemany(f"insert into trajectories values ({marks})", rows)
        self._index.commit()

    def summary(self, values: dict[str, Any]) -> None:
        """Write summary.json, whole or not at all."""
        self._replace("summary.json", json.dumps(values, indent=2))

    def status(self, values: dict[str, Any]) -> None:
        """Write status.json (`rl.status`), whole or not at all."""
        self._replace("status.json", json.dumps(values))

    def _replace(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.partial"
        partial.write_text(text + "\n")
        partial.rename(self.path / name)

    def close(self) -> None:
        """Close all files."""
        self._metrics.close()
        self._events.close()
        self._index.close()
        self._lock.close()

    def _line(self, file: Any, record: dict[str, Any]) -> None:
        file.write(json.dumps(record) + "\n")
        file.flush()


def dump_toml(config: RunConfig) -> str:
    """The resolved settings as TOML (keys that are None are left out: TOML has no null)."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value


def _set_aside(path: Path) -> Path | None:
    """Rename an earlier run of the same name; nothing is overwritten."""
    if not path.exists():
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    target = path.with_name(f"{path.name}.{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{stamp}-{number}")
    path.rename(target)
    return target
