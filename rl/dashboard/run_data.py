"""One run folder as the dashboard sees it: read again and again while the run writes it.

In: the files of `rl.record.run_folder`, each of which may be missing, half written, broken or hostile. Out:
settings, series, spans, status, summary, and the state of the run in a word. Nothing here writes, locks
or raises for what a file holds. Left out on purpose: the lock that tells whether a run is alive, since to try
it is to hold it for a moment, and a run that starts in that moment would be refused.
"""

import json
import math
import sqlite3
import sys
import threading
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, Strict, TypeAdapter, ValidationError

from rl.config_file import ConfigError
from rl.dashboard.change_points import ChangePoint
from rl.dashboard.changes import find_changes
from rl.dashboard.expert_loads import ExpertLoads, held, read_loads
from rl.dashboard.growing_lines import GrowingLines, Object, lines_of, plain
from rl.dashboard.series import Series, add, metrics_line, not_finite, not_finite_line, number
from rl.dashboard.text_index import TextIndex, default_cache
from rl.dashboard.trajectory_counts import TrajectoryCount, trajectory_counts
from rl.record.evaluations import EVALUATION, EvaluationRow
from rl.record.starts import START, Start
from rl.record.status import SILENT_SECONDS, STATUS, Status, first_fault
from rl.record.summary import SUMMARY, Summary
from rl.samples.learning_alarms import Alarm, learning_alarms

T = TypeVar("T")
State = Literal["starting", "running", "silent", "finished", "failed", "interrupted", "ended"]
# Two pages that ask within this time get the same answer.
FRESH_SECONDS = 1.0
_MAX_SPANS = 200_000
# Unix seconds that a span can have at most: the year 5138.
LATEST = 1e11
_INDEX_FILES = ("trajectories.sqlite", "trajectories.sqlite-wal")
_WRITTEN = ("status.json", "metrics.jsonl", "events.jsonl", "summary.json")
_FILES = (
    "config.toml",
    "origins.json",
    "experts.jsonl",
    "not_finite.jsonl",
    "evaluations.jsonl",
    "starts.jsonl",
    *_WRITTEN,
    *_INDEX_FILES,
)


def _text(value: object) -> str:
    """At most 300 characters; there are few different ones in many spans."""
    return sys.intern(str(value)[:300])


def _ids(value: object) -> tuple[str, ...]:
    """At most ten ids, whatever a file holds."""
    return tuple(map(_text, value[:10])) if isinstance(value, list) else ()


Text = Annotated[str, BeforeValidator(_text)]
Moment = Annotated[float, Strict(), Field(ge=0, le=LATEST, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time, such as lane "learner", name "step 3", from start to end (unix seconds).

    what: what is said of it beside, such as why a breaker has opened. trajectories: ids that
    show it.
    """

    lane: Text = ""
    name: Text = ""
    start: Moment = math.nan
    end: Moment = math.nan
    what: Text = ""
    trajectories: Annotated[tuple[str, ...], BeforeValidator(_ids)] = ()


_decode_span = lines_of(TypeAdapter(Span))


def read_span(line: bytes) -> Span | None:
    """One line of events.jsonl; None where it is none."""
    span = _decode_span(line)
    # A moment that the line does not have is no number, and nothing is before or after it.
    return span if span is not None and span.start <= span.end else None


class RunData:
    """Holds what is in a run folder. `refresh` reads what is new; everything else is as of then.

    Its attributes are replaced, never changed, so a page may use them while another thread refreshes.
    """

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        """cache: the folder of text indexes, if not the usual one."""
        self.folder, self.name = folder, folder.name
        self.texts = TextIndex(folder, cache or default_cache())
        self.series: dict[str, Series] = {}
        # Keys that were nan or infinite, and at which steps.
        self.not_finite: dict[str, list[int]] = {}
        # What metrics did that they do not in a healthy run, by step.
        self.alarms: list[Alarm] = []
        # Where metrics changed, as of the last `look_for_changes`.
        self.changes: dict[str, tuple[ChangePoint, ...]] = {}
        self.spans: list[Span] = []
        self.config: Object = {}
        self.origins: dict[str, str] = {}
        self.summary: Summary | None = None
        self.status: Status | None = None
        self.trajectories: list[TrajectoryCount] = []
        self.written: float = 0.0
        self.problems: list[str] = []
        self.experts: list[ExpertLoads] = []
        self.evaluations: list[EvaluationRow] = []
        self.starts: list[Start] = []
        self._metrics = GrowingLines(folder / "metrics.jsonl", metrics_line)
        self._not_finite = GrowingLines(folder / "not_finite.jsonl", not_finite_line)
        self._events = GrowingLines(folder / "events.jsonl", read_span)
        self._loads = GrowingLines(folder / "experts.jsonl", read_loads)
        self._evaluations = GrowingLines(folder / "evaluations.jsonl", lines_of(EVALUATION))
        self._starts = GrowingLines(folder / "starts.jsonl", lines_of(START))
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._seen: dict[str, tuple[int, ...]] = {}
        self._found: list[str] = []

    def refresh(self) -> None:
        """Read what is new. Several threads may call it; it reads at most once per `FRESH_SECONDS`."""
        with self._lock:
            if time.monotonic() - self._read_at < FRESH_SECONDS:
                return
            self._read_at = time.monotonic()
            seen = {name: self._mark(name) for name in _FILES}
            if seen == self._seen:
                return
            self._found = []
            self.config = self._settings()
            said = self._json("origins.json")
            self.origins = {key: str(value)[:500] for key, value in said.items()}
            self.summary = self._record("summary.json", SUMMARY)
            self.status = self._record("status.json", STATUS)
            self._read_metrics()
            self._read_events()
            self._read_experts()
            self.evaluations = self._grown("evaluations.jsonl", self._evaluations, self.evaluations)
            self.starts = self._grown("starts.jsonl", self._starts, self.starts)
            if any(seen[name] != self._seen.get(name) for name in _INDEX_FILES):
                self._read_index(seen)
            self.written = max(seen[name][0] for name in _WRITTEN) / 1e9
            self.problems, self._seen = self._found, seen

    def look_for_changes(self) -> None:
        """Find where pass rates and rewards changed; takes a while for many, so a page opens without it."""
        self.changes = find_changes(self.series)

    def state(self, now: float | None = None) -> State:
        """Sum up the run in a word: its own at its end, else from its last sign of life."""
        if self.summary is not None:
            said = self.summary.status
            return said if said in ("finished", "failed", "interrupted") else "ended"
        if self.status is not None and self.status.outcome:
            return self.status.outcome
        if self.status is None and not self.series:
            return "starting"
        silent = (time.time() if now is None else now) - self.written
        return "silent" if silent > SILENT_SECONDS else "running"

    @property
    def steps(self) -> int:
        """Learner steps that the run is to take; 0 where it is not known."""
        return int(number(self.config.get("steps")) or 0)

    @property
    def step(self) -> int:
        """The newest learner step of which there are metrics."""
        one = self.series.get("time/total_seconds")
        return one.steps[-1] if one is not None else 0

    @property
    def begin(self) -> float:
        """When the first line of metrics was written (unix seconds)."""
        return min((one.times[0] for one in self.series.values() if one.times), default=0.0)

    @property
    def held_out(self) -> dict[str, tuple[float | None, float | None]]:
        """Held-out pass rates per environment: the first and, where there are two or more, the last."""
        rates = {}
        for key, one in sorted(self.series.items()):
            kind, _, rest = key.partition("/")
            env, _, name = rest.rpartition("/")
            if kind == "eval" and name == "pass_rate":
                before = one.values[0] if one.steps[0] == 0 else None
                after = one.last if one.steps[-1] > 0 else None
                rates[env] = (before, after)
        return rates

    def _settings(self) -> Object:
        try:
            return plain(tomllib.loads((self.folder / "config.toml").read_bytes().decode()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self._found.append(f"config.toml cannot be read: {plain(str(error))}")
            return {}

    def _json(self, name: str) -> Object:
        try:
            value = json.loads((self.folder / name).read_bytes().decode(errors="replace"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self._found.append(f"{name} cannot be read: {plain(str(error))}")
            return {}
        if isinstance(value, dict):
            return plain(value)
        self._found.append(f"{name} holds no JSON object")
        return {}

    def _record(self, name: str, kind: TypeAdapter[T]) -> T | None:
        """The record of a file; None where there is none, or it is empty or broken."""
        value = self._json(name)
        if not value:
            return None
        try:
            return kind.validate_python(value)
        except ValidationError as error:
            self._found.append(f"{name} cannot be read: {first_fault(error)}")
            return None

    def _read_metrics(self) -> None:
        records, anew = self._metrics.read()
        before = {} if anew else self.series
        series = {
            key: Series([*one.steps], [*one.values], [*one.times]) for key, one in before.items()
        }
        bad = {} if anew else {key: [*steps] for key, steps in self.not_finite.items()}
        for record in records:
            add(series, record)
            for key in not_finite(record):
                bad.setdefault(key, []).append(int(number(record.get("step")) or 0))
        for line in self._not_finite.read()[0]:
            for key in line.keys:
                bad.setdefault(key, []).append(line.step)
        if records or anew:
            self.alarms = learning_alarms(series)
        self.series, self.not_finite = series, bad
        self._count_broken("metrics.jsonl", self._metrics.broken)

    def _read_events(self) -> None:
        spans, anew = self._events.read()
        before = [] if anew else self.spans
        self.spans = [*before, *spans][-_MAX_SPANS:]
        self._count_broken("events.jsonl", self._events.broken)

    def _read_experts(self) -> None:
        found, anew = self._loads.read()
        self.experts = held([*([] if anew else self.experts), *found])
        self._count_broken("experts.jsonl", self._loads.broken)

    def _grown(self, name: str, lines: GrowingLines[T], before: list[T]) -> list[T]:
        found, anew = lines.read()
        self._count_broken(name, lines.broken)
        return [*([] if anew else before), *found]

    def _count_broken(self, name: str, lines: int) -> None:
        if lines:
            self._found.append(f"{name}: {lines} lines could not be read and are left out")

    def _read_index(self, seen: dict[str, tuple[int, ...]]) -> None:
        try:
            self.trajectories = trajectory_counts(self.folder)
        except (sqlite3.Error, OSError) as error:
            self._found.append(f"trajectories.sqlite cannot be read now: {plain(str(error))}")
            for name in _INDEX_FILES:  # asked again at the next look
                seen[name] = (-1,)

    def _mark(self, name: str) -> tuple[int, ...]:
        """Time (ns), size and inode of a file: while they stay, so does what it holds."""
        try:
            state = (self.folder / name).stat()
        except OSError:
            return (0,)
        return state.st_mtime_ns, state.st_size, state.st_ino


class RunsFolder:
    """The folder that holds run folders, by name."""

    def __init__(self, path: Path, note: str = "", cache: Path | None = None) -> None:
        """Raises ConfigError where it is no folder, or a run folder itself. note: what every page says.
        cache: the folder of text indexes, if not the usual one."""
        if not path.is_dir():
            raise ConfigError(
                f"dashboard {path}: there is no such folder; name one that holds run folders, such as runs"
            )
        if (path / "config.toml").is_file():
            above = path.resolve().parent
            raise ConfigError(
                f"dashboard {path}: this is a run folder; name the one above it: {above}"
            )
        self.path, self.note, self.cache = path.resolve(), note, cache
        self._runs: dict[str, RunData] = {}

    def names(self) -> list[str]:
        """Run folders, the one begun last first. A name that is no UTF-8 has no address and is left out."""
        found: list[tuple[float, str]] = []
        try:
            listed = [folder for folder in self.path.iterdir() if self._is_run(folder.name)]
        except OSError:
            listed = []
        for folder in listed:
            with suppress(OSError):  # one that was removed while it was looked at, and no other
                found.append((-(folder / "config.toml").stat().st_mtime, folder.name))
        there = {name for _, name in found}
        self._runs = {name: run for name, run in self._runs.items() if name in there}
        return [name for _, name in sorted(found)]

    def find(self, name: str) -> RunData | None:
        """The run of that name; only a name that the folder lists leads anywhere."""
        if not self._is_run(name):
            return None
        return self._runs.setdefault(name, RunData(self.path / name, self.cache))

    def _is_run(self, name: str) -> bool:
        if "/" in name or name in ("", ".", "..") or plain(name) != name:
            return False
        try:
            return (self.path / name / "config.toml").is_file()
        except OSError:  # such as a name that is longer than names can be
            return False
