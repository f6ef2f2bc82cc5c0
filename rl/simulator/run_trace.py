"""The trace of a finished run, from its run folder: what was played, and what work cost.

Lengths and tool times come from the trajectories, engine costs from how long turns took beside each other,
the learner's and the weights' from the metrics.
"""

import json
import random
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from rl.config_file import ConfigError
from rl.record.run_folder import INDEX_SCHEMA
from rl.simulator.trajectory_plan import GroupPlan, Plan


@dataclass(frozen=True)
class PlayedTurn:
    """One turn as it was played: where, from when to when (unix seconds), tokens read and written."""

    engine: str
    start: float
    end: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Trace:
    """A finished run's trajectories and costs, group by group, in the order in which they began."""

    groups: tuple[GroupPlan, ...]
    turns: tuple[PlayedTurn, ...]
    metrics: tuple[dict[str, float], ...]

    @property
    def group_size(self) -> int:
        """Trajectories of a group."""
        return len(self.groups[0].members)

    def plans(self, seed: int) -> Iterator[GroupPlan]:
        """The groups as they were played, and then again and again in another order."""
        rng = random.Random(seed)
        groups = list(self.groups)
        while True:
            yield from groups
            rng.shuffle(groups)

    def decode_costs(self) -> tuple[float, float, float]:
        """Seconds per token written, the same per token and sequence beside it, per token read: least squares
        over all turns."""
        rows = self.turn_work()
        work = np.array([row for row, _ in rows], dtype=float)
        return _nonnegative_fit(work, np.array([seconds for _, seconds in rows]))

    def turn_work(self) -> list[tuple[tuple[float, float, float], float]]:
        """The work that each turn waited for, and how many seconds it took.

        While it was played, a turn waited for the tokens it wrote, for the sequences that were written with
        it, and for what its engine read meanwhile.
        """
        rows: list[tuple[tuple[float, float, float], float]] = []
        by_engine: dict[str, list[PlayedTurn]] = defaultdict(list)
        for turn in self.turns:
            by_engine[turn.engine].append(turn)
        for turns in by_engine.values():
            starts = np.array([t.start for t in turns])
            ends = np.array([t.end for t in turns])
            read = np.array([t.prompt_tokens for t in turns])
            for turn in turns:
                length = max(1e-6, turn.end - turn.start)
                shared = np.minimum(ends, turn.end) - np.maximum(starts, turn.start)
                beside = np.clip(shared, 0, None).sum() / length
                meanwhile = read[(starts >= turn.start - 1e-3) & (starts < turn.end)].sum()
                written = turn.completion_tokens
                rows.append(((written, written * beside, meanwhile), length))
        return rows

    def learner_seconds(self) -> float:
        """Seconds of one step: the update, and copying its weights."""
        return fmean(m["time/learner_seconds"] + m["sync/snapshot_ms"] / 1e3 for m in self.metrics)

    def load_seconds(self) -> float:
        """Seconds that an engine stands still to take another version."""
        pauses = [m["sync/pause_ms"] for m in self.metrics if m["sync/pause_ms"] > 0]
        return median(pauses) / 1e3 if pauses else 0.0


def read_trace(folder: Path) -> Trace:
    """A run folder's trace. Raises ConfigError where it is none, or of another schema."""
    index = folder / "trajectories.sqlite"
    if not index.is_file():
        raise ConfigError(f"trace {folder}: this is no run folder, there is no {index.name} in it")
    try:
        rows = _rows(folder, index)
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
        steps = tuple(m for m in metrics if "time/learner_seconds" in m)
        return _trace(folder, rows, steps)
    except (sqlite3.Error, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"trace {folder}: its records cannot be read ({type(error).__name__}: {error}); "
            "a finished run of this version can"
        ) from None


def _rows(folder: Path, index: Path) -> list[tuple[str, bool, dict[str, Any]]]:
    """Group, whether it gave samples, and record, of every trajectory of training."""
    database = sqlite3.connect(f"file:{index}?mode=ro", uri=True)
    try:
        schema = database.execute("pragma user_version").fetchone()[0]
        if schema != INDEX_SCHEMA:
            raise ConfigError(
                f"trace {folder}: its trajectories are of schema {schema}, this version reads schema "
                f"{INDEX_SCHEMA}; take a run that was made with it"
            )
        found = database.execute(
            "select grp, outcome, file, offset from trajectories where split = 'train' order by grp, id"
        ).fetchall()
    finally:
        database.close()
    rows: list[tuple[str, bool, dict[str, Any]]] = []
    files = {name: (folder / name).open("rb") for name in {row[2] for row in found}}
    for group, outcome, name, offset in found:
        files[name].seek(offset)
        rows.append((group, outcome == "sample", json.loads(files[name].readline())))
    for file in files.values():
        file.close()
    return rows


def _trace(
    folder: Path,
    rows: Sequence[tuple[str, bool, dict[str, Any]]],
    steps: tuple[dict[str, float], ...],
) -> Trace:
    members: dict[str, list[Plan]] = defaultdict(list)
    sampled: dict[str, bool] = defaultdict(bool)
    turns: list[PlayedTurn] = []
    for group, gave_sample, record in rows:
        if record["turns"]:
            members[group].append(_plan(record))
            sampled[group] |= gave_sample
            turns += _played(record)
    size = max((len(plans) for plans in members.values()), default=0)
    groups = tuple(
        GroupPlan(tuple(plans), filtered=not sampled[group])
        for group, plans in members.items()
        if len(plans) == size
    )
    if not groups or not steps:
        raise ConfigError(f"trace {folder}: the run trained nothing, there is nothing to repeat")
    return Trace(groups, tuple(turns), steps)


def _plan(record: dict[str, Any]) -> Plan:
    turns = record["turns"]
    waits = _waits(record["phases"])
    waits = (waits + [0.0] * len(turns))[: len(turns) - 1]
    told = [len(turn["prompt_ids"]) for turn in turns]
    return Plan(
        prompt_tokens=told[0],
        turns=tuple(max(1, len(turn["completion_ids"])) for turn in turns),
        tool_seconds=tuple(waits),
        tool_tokens=round(fmean(told[1:])) if len(told) > 1 else 0,
    )


def _waits(phases: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds that the environment and its user took over each turn; phases of both may take turns."""
    waits: list[float] = []
    begun = True
    for phase in phases:
        if phase["name"] not in ("tool", "reply", "user"):
            begun = True
        elif not begun:
            waits[-1] += phase["seconds"]
        elif phase["name"] != "user":  # which is that of `reset`
            waits.append(phase["seconds"])
            begun = False
    return waits


def _played(record: dict[str, Any]) -> Iterator[PlayedTurn]:
    phases = [p for p in record["phases"] if p["name"] == "generate"]
    for phase, turn in zip(phases, record["turns"], strict=False):
        yield PlayedTurn(
            engine=turn["engine"],
            start=phase["start"],
            end=phase["start"] + phase["seconds"],
            prompt_tokens=len(turn["prompt_ids"]),
            completion_tokens=len(turn["completion_ids"]),
        )


def _nonnegative_fit(rows: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """Least squares with coefficients that are not below 0: the most negative is left out, one by one."""
    used = [0, 1, 2]
    found = np.zeros(3)
    while used:
        solved = np.linalg.lstsq(rows[:, used], seconds, rcond=None)[0]
        if (solved >= 0).all():
            found[used] = solved
            break
        used.pop(int(solved.argmin()))
    return float(found[0]), float(found[1]), float(found[2])
