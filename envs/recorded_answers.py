"""Recorded answers: the final texts of a run's or an evaluation's trajectories, by the task that they answer.

In: a run folder, an evaluation's folder, or one file of trajectories (JSONL). Out: tasks of one environment
with their answers, each of which was right or not. An episode has an answer where the environment ended it on
a text of the policy; faults, limits and episodes that end with a tool call have none. Thoughts are no part.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from envs.handover import full_reward
from envs.message import JsonObject
from envs.text import told

# What the learner wrote of tokens lies beside the trajectories.
_NOT_PLAYED = "learned.jsonl"


@dataclass(frozen=True)
class RecordedAnswer:
    """One final text, and True if its episode passed: `RecordedAnswer("42", True)`."""

    text: str
    right: bool


@dataclass
class AnsweredTask:
    """One task's data and its answers, in the order in which they were written down.

    evaluated: an evaluation played it, and no training.
    """

    data: JsonObject
    answers: list[RecordedAnswer] = field(default_factory=list[RecordedAnswer])
    evaluated: bool = True


@dataclass(frozen=True)
class Record:
    """The record of one environment: its tasks, and how many judged episodes there were."""

    tasks: tuple[AnsweredTask, ...]
    judged: int


def final_text(stop_reason: str, text: str, calls: Sequence[object]) -> str:
    """The answer of an episode, by its stop reason, its last turn's text and calls; "" where it has none."""
    return text.strip() if stop_reason == "completed" and not calls else ""


def read_record(path: str, env: str) -> Record:
    """Read what is recorded of the environment class called `env`. Raises ValueError with a sentence."""
    files = _files(Path(path))
    return _read(tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files), env)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(f for f in (path / "trajectories").glob("*.jsonl") if f.name != _NOT_PLAYED)
    if not found:
        kind = "has no trajectories" if path.is_dir() else "does not exist"
        raise ValueError(
            f"record {str(path)!r} {kind}: name a run's folder, an evaluation's, or a file of trajectories "
            "(JSONL)"
        )
    return found


# A run asks several times: when it is checked, and for each split, in each of its processes.
@lru_cache(maxsize=4)
def _read(files: tuple[tuple[str, int, int], ...], env: str) -> Record:
    tasks: dict[str, AnsweredTask] = {}
    judged = 0
    for line in (line for file, *_ in files for line in _lines(Path(file))):
        task = cast(JsonObject, line["task"])
        if task["env"] != env or line["stop_reason"] not in (
            "completed",
            "max_turns",
            "max_tokens",
        ):
            continue
        judged += 1
        one = tasks.setdefault(str(task["id"]), AnsweredTask(task["data"]))
        one.evaluated = one.evaluated and str(line["group"]).startswith("eval-")
        turns: list[JsonObject] = line["turns"]
        last = turns[-1] if turns else {}
        text = final_text(line["stop_reason"], str(last.get("text", "")), last.get("calls", ()))
        if text:
            rewards: dict[str, float] = line["rewards"]
            total = rewards["solved"] if "solved" in rewards else float(line["reward"])
            right = full_reward(total)
            one.answers.append(RecordedAnswer(text, right))
    return Record(tuple(tasks.values()), judged)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The trajectories of a file; a last line that is being written is left out. Raises ValueError."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                found = json.loads(line)
                _ = found["task"]["env"], found["task"]["id"], found["group"], found["stop_reason"]
                _ = found["task"]["data"], found["turns"], found["rewards"], found["reward"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}: no trajectory: {told(error)}") from None
            yield found
