"""Labelled answers of a file: what people have said of them, to hold a judge to.

A row is a pair, `{"question": …, "chosen": …, "rejected": …}`, or one answer, `{"question": …, "answer": …,
"label": "good"}` (or "bad", or a number from 0 to 1). What else a row has is the task's data: a judge finds
its `answers` or its rubric there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.env import Task
from envs.message import JsonObject, Message
from envs.rows import SUFFIXES, each, file_rows
from rl.config_error import ConfigError
from rollout.trajectory import Trajectory, Turn

LABELS = {"good": 1.0, "bad": 0.0}


@dataclass(frozen=True)
class Pair:
    """Two answers to a question, of which people prefer one."""

    question: str
    chosen: str
    rejected: str
    data: JsonObject


@dataclass(frozen=True)
class Single:
    """One answer, and how good people say it is, from 0 to 1."""

    question: str
    answer: str
    label: float
    data: JsonObject


Labelled = Pair | Single


def read_labelled(file: Path) -> list[Labelled]:
    """The rows of a file. Raises ConfigError with the first that is none."""
    if file.suffix not in SUFFIXES or not file.is_file():
        raise ConfigError(f"{file}: a file of labelled answers is wanted, {', '.join(SUFFIXES)}")
    try:
        found = [one for _, one in each(file_rows(str(file)), str(file), labelled)]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not found:
        raise ConfigError(f"{file}: it has no rows")
    return found


def read_questions(file: Path) -> list[str]:
    """The questions of a file, `question` or `prompt` of its rows, each once. Raises ConfigError."""
    if file.suffix not in SUFFIXES or not file.is_file():
        raise ConfigError(f"{file}: a file of questions is wanted, {', '.join(SUFFIXES)}")
    try:
        found = dict.fromkeys(one for _, one in each(file_rows(str(file)), str(file), _question))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not found:
        raise ConfigError(f"{file}: it has no rows")
    return list(found)


def _question(row: JsonObject) -> str:
    """A row's question. Raises ValueError."""
    text = _text(row, "question" if "question" in row or "prompt" not in row else "prompt")
    if not text.strip():
        raise ValueError("the question is empty")
    return text


def labelled(row: JsonObject) -> Labelled:
    """One row. Raises ValueError."""
    question = _question(row)
    if "chosen" in row:
        known = ("question", "prompt", "chosen", "rejected")
        rest = {k: v for k, v in row.items() if k not in known}
        pair = Pair(question, _text(row, "chosen"), _text(row, "rejected"), rest)
        if pair.chosen == pair.rejected:
            raise ValueError("chosen and rejected are the same, so neither is preferred")
        return pair
    if "answer" not in row:
        raise ValueError("a row needs chosen and rejected, or answer and label")
    rest = {k: v for k, v in row.items() if k not in ("question", "answer", "label")}
    return Single(question, _text(row, "answer"), _label(row.get("label")), rest)


def _label(given: object) -> float:
    if isinstance(given, str) and given in LABELS:
        return LABELS[given]
    if isinstance(given, int | float) and 0 <= given <= 1:
        return float(given)
    raise ValueError(f'label has to be "good", "bad" or a number from 0 to 1, not {given!r}')


def _text(row: JsonObject, key: str) -> str:
    value: Any = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} has to be text, not {value!r}")
    return value


def trajectory_of(question: str, answer: str, data: JsonObject, name: str = "0") -> Trajectory:
    """A question and an answer as the record that judges take."""
    turn = Turn((), (), (), (), "stop", "", answer)
    return Trajectory(
        id=name,
        group="",
        env="labelled",
        task=Task("labelled", {"question": question, **data}),
        opening=(Message("user", question),),
        turns=(turn,),
        stop_reason="completed",
        env_rewards={},
        phases=(),
    )
