"""The feed of a tracker: what a run has written to its folder since the last look, as records.

In: the files of `rl.record.run_folder`, which another process writes. Out: lines of metrics.jsonl, results of
evaluations with a sample of their trajectories, trajectories, status.json, in the order in which they came.
What a tracker does not hear is not read. An index that cannot be read now is asked again at the next look.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rl.config_file import ConfigError
from rl.dashboard.growing_lines import parse
from rl.dashboard.series import number
from rl.dashboard.trajectory_counts import ask
from rl.dashboard.trajectory_index import Hit, first_rows
from rl.dashboard.trajectory_record import Said, TrajectoryView, Unreadable, read_record
from rl.record.status import Status, read_status
from rl.trackers.tracker import Ended, Episode, Evaluated, Line, News, Order, Position, Sample

# Trajectories that one look reads, and characters of a transcript in a table.
EPISODES, TRANSCRIPT = 256, 4000
_TRAINED = (
    "select t.env, t.reward, t.completion_tokens, t.turns from learned l join trajectories t on t.id = l.id "
    "where l.step = ?"
)


class _NewLines:
    """The records of a JSONL file since the last call, from a byte on; half a line waits for its rest."""

    def __init__(self, file: Path, begins: int) -> None:
        self.file = file
        self.offset = begins

    def read(self) -> Iterator[dict[str, object]]:
        if not self.file.exists():
            return
        with self.file.open("rb") as lines:
            lines.seek(self.offset)
            while (line := lines.readline()).endswith(b"\n"):
                self.offset += len(line)
                if record := parse(line):
                    yield record


class Feed:
    """Reads a run for one tracker: `read` gives what is new, `ended` how the run has ended."""

    def __init__(self, order: Order, hears: frozenset[type], *, samples: int, share: float) -> None:
        """samples: trajectories of each evaluation. share: of the trajectories, those that are told."""
        self.folder = Path(order.folder)
        self.order = order
        self.hears = hears
        self.samples = samples
        self.share = share
        self._metrics = _NewLines(self.folder / "metrics.jsonl", order.metrics)
        self._evaluations = _NewLines(self.folder / "evaluations.jsonl", order.evaluations)
        self._row = order.row if order.read is None else order.read
        self._status: Status | None = None

    @property
    def position(self) -> Position:
        """How far it has read."""
        return Position(self._metrics.offset, self._evaluations.offset, self._row)

    def read(self) -> Iterator[News]:
        """Read what is new of all that the tracker hears."""
        if Line in self.hears:
            yield from map(self._line, self._metrics.read())
        if Evaluated in self.hears:
            yield from map(self._evaluated, self._evaluations.read())
        if Episode in self.hears:
            yield from self._episodes()
        if Status in self.hears and (status := self._new_status()) is not None:
            yield status

    def ended(self) -> Ended:
        """Read how the run has ended; "" where it has not said so."""
        try:
            status = read_status(self.folder)
            outcome, said = status.outcome, status.said
        except ConfigError:
            outcome, said = "", ""
        try:
            summary = json.loads((self.folder / "summary.json").read_bytes())
        except (OSError, ValueError):
            summary = {}
        return Ended(outcome, said, summary if isinstance(summary, dict) else {})

    def _line(self, record: dict[str, object]) -> Line:
        numbers = {key: value for key, one in record.items() if (value := number(one)) is not None}
        step, time = int(numbers.pop("step", 0)), numbers.pop("time", 0.0)
        line = Line(step, time, numbers)
        return replace(line, histograms=self._histograms(step)) if _is_step(line) else line

    def _histograms(self, step: int) -> dict[str, list[float]]:
        """Rewards, lengths and turns of what a step trained on, of each environment and of all."""
        try:
            rows = ask(self.folder, _TRAINED, [step])
        except sqlite3.Error:
            return {}
        found: dict[str, list[float]] = {}
        for env, *values in rows:
            for name, value in zip(("reward", "completion_tokens", "turns"), values, strict=True):
                if (one := number(value)) is not None:
                    for key in dict.fromkeys((str(env), "all")):
                        found.setdefault(f"trained/{key}/{name}", []).append(drawable(one))
        return found

    def _evaluated(self, record: dict[str, object]) -> Evaluated:
        whole = {key: int(number(record.get(key)) or 0) for key in ("step", "version", "lag")}
        when = str(record.get("when", ""))
        learner = whole["version"] + whole["lag"]
        return Evaluated(when, whole["step"], learner, record, self._sample(when))

    def _sample(self, when: str) -> list[Sample]:
        """Pick the first tasks of each environment, the same in every evaluation."""
        split = f"heldout-{when}"
        if not self.samples:
            return []
        try:
            envs = ask(
                self.folder,
                "select distinct env from trajectories where split = ? and rowid > ? order by env",
                [split, self.order.row],
            )
            each = -(-self.samples // max(1, len(envs)))
            hits = [
                hit
                for (env,) in envs
                for hit in first_rows(
                    self.folder,
                    "split = ? and env = ? and rowid > ?",
                    [split, env, self.order.row],
                    each,
                    "length(grp), grp, id",
                )
            ]
        except sqlite3.Error:
            return []
        return [self._row_of(hit) for hit in hits[: self.samples]]

    def _row_of(self, hit: Hit) -> Sample:
        try:
            transcript = transcript_of(read_record(self.folder, hit))[:TRANSCRIPT]
        except Unreadable as error:
            transcript = str(error)
        return Sample(
            id=hit.id,
            env=hit.env,
            task=hit.task,
            reward=hit.reward,
            stop_reason=hit.stop_reason,
            turns=hit.turns,
            tokens=hit.tokens,
            versions=hit.versions,
            transcript=transcript,
        )

    def _episodes(self) -> Iterator[Episode]:
        while True:
            try:
                hits = first_rows(self.folder, "rowid > ?", [self._row], EPISODES)
            except sqlite3.Error:
                return
            for hit in hits:
                self._row = hit.row
                if hit.row * self.share % 1 >= self.share:
                    continue
                try:
                    yield _episode(hit, read_record(self.folder, hit))
                except Unreadable:
                    continue
            if len(hits) < EPISODES:
                return

    def _new_status(self) -> Status | None:
        try:
            status = read_status(self.folder)
        except ConfigError:
            return None
        if self._status is not None and status.time == self._status.time:
            return None
        self._status = status
        return status


def drawable(value: float) -> float:
    """The value to six digits, within 1e12: no tracker makes bins between 0.3 and 0.1 + 0.2, or at 1e16."""
    return 0.0 if abs(value) < 1e-30 else max(-1e12, min(1e12, float(f"{value:.6g}")))


def _is_step(line: Line) -> bool:
    """True for the line of a learner step, false for that of an evaluation."""
    return "time/total_seconds" in line.values


def _episode(hit: Hit, record: TrajectoryView) -> Episode:
    return Episode(
        env=hit.env,
        split=hit.split,
        start=hit.start or 0.0,
        outcome=hit.outcome,
        versions=hit.versions,
        turns=hit.turns or 0,
        tokens=hit.tokens or 0,
        record=record,
    )


def transcript_of(record: TrajectoryView) -> str:
    """The messages of a trajectory as text, one after the other."""
    lines = [_message(said) for said in record.opening]
    for turn in record.turns:
        calls = "".join(
            f"\n{call.name}({', '.join(f'{k}={v}' for k, v in call.arguments)})"
            for call in turn.calls
        )
        lines.append(f"assistant: {turn.text}{calls}")
        lines += map(_message, turn.observations)
    return "\n\n".join(lines)


def _message(said: Said) -> str:
    return f"{said.name or said.role}: {said.text}"
