"""The run folder: everything a dashboard, a resume or a replay needs, in files that only grow.

config.toml          resolved settings          checkpoints/step_N/   the learner's state
metrics.jsonl        one line per step          logs/                 one file per actor
events.jsonl         spans of time (Gantt)      trajectories/         JSONL, one file per controller
trajectories.sqlite  index of the trajectories  .../learned.jsonl     what training computed of their tokens
status.json          what the run does now      summary.json          written at the end
experts.jsonl        the experts' load          origins.json          where settings come from
evaluations.jsonl    one line per evaluation    checkpoints/best      a link to the best of them
tokenizer.json       to read token ids by       earlier/N/            what the N-th resume took out
starts.jsonl         command line, commit and versions of each start     logs/terminal.log  what it printed

A run that goes on from a checkpoint (`--resume`) writes on in the same files. Of the steps after that
checkpoint, which are undone, metrics.jsonl, experts.jsonl and evaluations.jsonl lose their lines, the index
its rows of what they trained on, and checkpoints/ its folders: they lie in earlier/N, with the settings and
the summary until then. Events and trajectories, which did happen, all stay.
"""

import fcntl
import json
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import orjson
import tomli_w

from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.record.best_checkpoint import BEST, EVALUATED, EVALUATIONS, link_best
from rl.samples.group import GroupReport
from rl.samples.metrics import per_env
from rollout.trajectory import ScoredTrajectory
from trainer.checkpoint_folder import steps
from trainer.own_objective import OWN_FUNCTIONS, own_sources
from trainer.sample import TokenScores

# Bumped when trajectories.sqlite or the records it points to change; readers check it.
INDEX_SCHEMA = 1
# A model with more layers x experts has its loads written every so many steps only.
MOST_LOADS, LOADS_EVERY = 4096, 10
_INDEX = """
create table if not exists trajectories (
    id text primary key, grp text, env text, split text, task text, stop_reason text, reward real,
    outcome text, first_version integer, last_version integer, turns integer, tokens integer,
    completion_tokens integer, start real, seconds real, fault text, file text, offset integer
)
"""
# Samples that were trained on, by step: where in LEARNED the record lies.
_LEARNED_INDEX = """
create table if not exists learned (
    id text, step integer, offset integer, primary key (id, step)
) without rowid
"""
LEARNED = "trajectories/learned.jsonl"
NOT_FINITE = "not_finite.jsonl"
# A mean, and the key that counts what it is over: of nothing it is nan, and nothing is wrong.
MEAN_OVER = {"parity/mean_abs_dlogp": "parity/tokens"}


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


class LearnedWriter:
    """Appends numbers that the learner computed per token that it trained on; the learner has it."""

    def __init__(self, folder: Path) -> None:
        path = folder / LEARNED
        path.parent.mkdir(parents=True, exist_ok=True)
        self._out = path.open("ab")

    def write(self, step: int, scores: Iterable[TokenScores]) -> list[tuple[str, int]]:
        """Append a line per sample. Returns their ids and byte offsets."""
        written: list[tuple[str, int]] = []
        for one in scores:
            written.append((one.id, self._out.tell()))
            record = {
                "id": one.id,
                "step": step,
                "advantages": _once(one.advantages),
                "learner_logprobs": _short(one.learner_logprobs),
                "entropies": _short(one.entropies),
                "experts": one.experts,
            }
            options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
            self._out.write(orjson.dumps(record, option=options))
        self._out.flush()
        return written


def _once(numbers: list[float]) -> float | list[float | None]:
    """One number where all are the same, as advantages of a group are."""
    short = _short(numbers)
    first = short[0]
    return first if first is not None and short.count(first) == len(short) else short


def _short(numbers: Sequence[float | None]) -> list[float | None]:
    return [None if one is None else round(one, 6) for one in numbers]


class RunFolder:
    """Writes the run folder of one run."""

    def __init__(
        self,
        config: RunConfig,
        *,
        resume: bool = False,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        """Create the folder; one that is there already is kept under a name with its date.

        With `resume` it is the one to go on in; `go_on` says where, once that is certain. Raises ConfigError
        where a run in progress holds the folder, and where another release wrote the index. origins: where
        the settings that are no defaults come from.
        """
        self.path = config.folder
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Held for the life of this process, on a file beside the folder, which may move.
        self._lock = (self.path.parent / f".{self.path.name}.lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--resume: the run in {self.path} is in progress"
                if resume
                else f"name: a run called {config.name!r} is in progress in {config.runs_dir}; "
                "give this one another with --name"
            ) from None
        self.config = config
        self.origins = dict(origins or {})
        self.kept = None if resume else _set_aside(self.path)
        for sub in ("trajectories", "checkpoints", "logs"):
            (self.path / sub).mkdir(parents=True, exist_ok=True)
        if resume:
            for file in (*self.path.glob("*.jsonl"), *self.path.glob("trajectories/*.jsonl")):
                _cut_off_half_a_line(file)
        else:
            self._settings()
        self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        # The byte of metrics.jsonl at which this part of the run begins.
        self.begins = self._metrics.tell()
        self._events = (self.path / "events.jsonl").open("a", encoding="utf-8")
        self._experts = (self.path / "experts.jsonl").open("a", encoding="utf-8")
        self._index = sqlite3.connect(self.path / "trajectories.sqlite")
        [schema] = self._index.execute("pragma user_version").fetchone()
        if schema not in (0, INDEX_SCHEMA):
            raise ConfigError(
                f"--resume: {self.path}/trajectories.sqlite has schema {schema}; this release writes "
                f"{INDEX_SCHEMA}"
            )
        self._index.execute("pragma journal_mode=wal")
        self._index.execute(f"pragma user_version = {INDEX_SCHEMA}")
        # A commit per group must not wait for the disk. A crash of the process loses nothing; one of the
        # machine may lose the last rows, whose trajectories are in their files.
        self._index.execute("pragma synchronous=normal")
        self._index.execute(_INDEX)
        self._index.execute(_LEARNED_INDEX)

    @property
    def part(self) -> int:
        """Which part of the run this is: 1, and one more for each time that it has gone on."""
        return 1 + len(list((self.path / "earlier").glob("*")))

    def go_on(self, step: int) -> Path:
        """Go on after `step`: what is undone, settings and summary until then move to the folder returned."""
        number = 1
        while (aside := self.path / "earlier" / str(number)).exists():
            number += 1
        aside.mkdir(parents=True)
        for name in ("config.toml", "origins.json", "summary.json", "status.json"):
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        self._settings()
        for later, folder in steps(self.path / "checkpoints"):
            if later > step:
                folder.rename(aside / folder.name)
        self._metrics = self._undo(self._metrics, "metrics.jsonl", step, aside)
        self.begins = self._metrics.tell()
        self._experts = self._undo(self._experts, "experts.jsonl", step, aside)
        for name in (NOT_FINITE, EVALUATIONS):
            if (self.path / name).exists():
                self._move_undone(name, step, aside)
        (self.path / "checkpoints" / EVALUATED).unlink(missing_ok=True)
        if (self.path / "checkpoints" / BEST).is_symlink():
            link_best(self.path)
        self._unlearn(step, aside)
        now = time.time()
        self.event("run", f"goes on after step {step}", now, now, earlier=str(aside))
        return aside

    def started(self, record: Mapping[str, object]) -> None:
        """Add a line to starts.jsonl: the provenance of this part of the run."""
        with (self.path / "starts.jsonl").open("a", encoding="utf-8") as file:
            self._line(file, record)

    def keep_tokenizer(self, checkpoint: str) -> None:
        """Copy the tokenizer of a local checkpoint, by which token ids can be read from the beginning on."""
        file = Path(checkpoint) / "tokenizer.json"
        if file.is_file():
            shutil.copyfile(file, self.path / file.name)

    def _undo(self, file: TextIO, name: str, step: int, aside: Path) -> TextIO:
        """Move the lines of later steps to `aside`; returns the file, open to go on."""
        file.close()
        self._move_undone(name, step, aside)
        return (self.path / name).open("a", encoding="utf-8")

    def _move_undone(self, name: str, step: int, aside: Path) -> None:
        lines = (self.path / name).read_text(encoding="utf-8").splitlines(keepends=True)
        undone: list[str] = []
        kept: list[str] = []
        for line in lines:
            row = json.loads(line)
            # An evaluation may have played later versions than that of its step, and these are undone too.
            (undone if max(row["step"], row.get("version", 0)) > step else kept).append(line)
        (aside / name).write_text("".join(undone), encoding="utf-8")
        self._replace(name, "".join(kept))

    def _unlearn(self, step: int, aside: Path) -> None:
        """Move the index's rows of what later steps trained on to `aside`; LEARNED keeps its lines."""
        rows = self._index.execute(
            "select id, step, offset from learned where step > ?", (step,)
        ).fetchall()
        records = (json.dumps(dict(zip(("id", "step", "offset"), r, strict=True))) for r in rows)
        (aside / "learned_index.jsonl").write_text(
            "".join(f"{line}\n" for line in records), encoding="utf-8"
        )
        self._index.execute("delete from learned where step > ?", (step,))
        self._index.commit()

    def _settings(self) -> None:
        (self.path / "config.toml").write_text(dump_toml(self.config), encoding="utf-8")
        self._replace("origins.json", json.dumps(self.origins, indent=2) + "\n")
        self._replace(OWN_FUNCTIONS, json.dumps(own_sources(self.config.learner), indent=2) + "\n")

    def groups(self) -> int:
        """Count the groups of training that have begun at least, by their names in the index."""
        query = (
            "select max(cast(substr(grp, 2) as integer)) from trajectories where split = 'train'"
        )
        [last] = self._index.execute(query).fetchone()
        return 0 if last is None else last + 1

    def eval_before(self) -> dict[str, float]:
        """Read the pass rates of the evaluation before training; none where there was none."""
        with (self.path / "metrics.jsonl").open(encoding="utf-8") as lines:
            first = next((json.loads(line) for line in lines), {"step": 1})
        return per_env(first, "eval", "pass_rate") if first["step"] == 0 else {}

    def metrics_lines(self) -> list[dict[str, float]]:
        """Read the lines of metrics.jsonl, of the earlier parts of a run that goes on."""
        with (self.path / "metrics.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def metrics(self, step: int, values: Mapping[str, object]) -> None:
        """Write one line of metrics.jsonl; infinite numbers and those that are none are left out.

        not_finite.jsonl names them, but for means over nothing.
        """
        without = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        finite = {k: v for k, v in values.items() if k not in without}
        bad = [k for k in without if k not in MEAN_OVER or values.get(MEAN_OVER[k]) != 0]
        self._line(self._metrics, {"step": step, "time": time.time(), **finite})
        if bad:
            with (self.path / NOT_FINITE).open("a", encoding="utf-8") as file:
                self._line(file, {"step": step, "keys": bad})

    def experts(self, step: int, computing: int, loads: Sequence[Sequence[float]]) -> None:
        """Write one line of experts.jsonl: the share of tokens that chose each expert, per layer.

        computing: how many of a layer's experts compute, the first ones. Of a large model every tenth step;
        of one without experts none.
        """
        if not loads or (len(loads) * len(loads[0]) > MOST_LOADS and step % LOADS_EVERY):
            return
        self._line(self._experts, {"step": step, "computing": computing, "loads": loads})

    def evaluation(self, row: Mapping[str, object]) -> None:
        """Write one line of evaluations.jsonl: what `rl.loop.evaluation` found, at which version."""
        with (self.path / EVALUATIONS).open("a", encoding="utf-8") as file:
            self._line(file, {"time": time.time(), **row})

    def event(self, lane: str, name: str, start: float, end: float, **details: object) -> None:
        """Write one line of events.jsonl: a span in a lane of the Gantt chart (unix seconds)."""
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

    def learned(self, step: int, written: Iterable[tuple[str, int]]) -> None:
        """Add lines of `LearnedWriter`, written for one step, to the index."""
        rows = [(id, step, offset) for id, offset in written]
        self._index.executemany("insert or replace into learned values (?, ?, ?)", rows)
        self._index.commit()

    def summary(self, values: Mapping[str, object]) -> None:
        """Write summary.json, whole or not at all."""
        self._replace("summary.json", json.dumps(values, indent=2) + "\n")

    def status(self, values: Mapping[str, object]) -> None:
        """Write status.json (`rl.record.status`), whole or not at all."""
        self._replace("status.json", json.dumps(values) + "\n")

    def _replace(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.rename(self.path / name)

    def close(self) -> None:
        """Close all files. On a full disk what was not written is known by now."""
        for file in (self._metrics, self._events, self._experts, self._index, self._lock):
            with suppress(OSError, sqlite3.Error):
                file.close()

    def _line(self, file: TextIO, record: Mapping[str, object]) -> None:
        file.write(json.dumps(record) + "\n")
        file.flush()


def dump_toml(config: RunConfig) -> str:
    """The resolved settings as TOML (keys that are None are left out: TOML has no null)."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _without_none(table: Mapping[str, object]) -> dict[str, object]:
    return {key: _value(one) for key, one in table.items() if one is not None}


def _value(value: object) -> object:
    if isinstance(value, dict):
        return _without_none(value)
    return [_value(one) for one in value] if isinstance(value, list) else value


def _cut_off_half_a_line(file: Path) -> None:
    """Remove the half record that a killed process has left at the end of a file."""
    with file.open("rb+") as lines:
        end = size = lines.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            lines.seek(start)
            found = lines.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            lines.truncate(end)


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
