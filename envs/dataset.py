"""Rows of a data set as tasks: a Hub name, or local JSONL or Parquet with the same columns.

Each row has a question and a reference answer; the policy answers in plain text, and a reward function
judges the answer against the reference (`reward.answer`). Rows of a split that the data set itself
calls `test` or `validation`, or of a second file, can serve as held-out tasks.

Refuses a row whose question or answer is neither text nor a number: no answer could ever equal it.
"""

import hashlib
import importlib
import json
import random
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import model_validator

from envs.env import HELDOUT_SHARE, Env, EnvConfig, Split, Task
from envs.message import JsonObject, Message


class DatasetConfig(EnvConfig):
    """Where the rows are (`hub` or `path`, exactly one) and which columns to read."""

    hub: str | None = None
    subset: str | None = None
    path: str | None = None
    train_split: str = "train"
    heldout_split: str | None = None
    heldout_path: str | None = None
    question: str = "question"
    answer: str = "answer"
    answer_after: str = ""
    system: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetConfig":
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of hub (a name on the Hub) and path (a local file)")
        of_hub = (self.subset, self.heldout_split)
        if self.path is not None and of_hub != (None, None):
            raise ValueError("subset and heldout_split go with hub; with path, give heldout_path")
        if self.hub is not None and self.heldout_path is not None:
            raise ValueError("heldout_path goes with path; with hub, give heldout_split")
        for path in (self.path, self.heldout_path):
            if path is not None and Path(path).suffix not in (".jsonl", ".json", ".parquet"):
                raise ValueError(f"path {path!r} has to end in .jsonl, .json or .parquet")
            if path is not None and not Path(path).is_file():
                raise ValueError(f"path {path!r} does not exist")
        return self


class DatasetEnv(Env):
    """A question from a data set, answered in one turn."""

    name = "dataset"
    config_type = DatasetConfig
    config: DatasetConfig

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """Endless: the rows of the split, shuffled anew with every pass."""
        rows = self._rows(split)
        if not rows:
            raise ValueError(
                f"data set {self.config.hub or self.config.path}: split {split} is empty"
            )
        rng = random.Random(f"{split}/{seed}")
        while True:
            for row in rng.sample(rows, len(rows)):
                yield Task(self.name, row)

    def _rows(self, split: Split) -> list[dict[str, str]]:
        config = self.config
        own = config.heldout_split or config.heldout_path
        # Without held-out rows of its own, a data set is cut by the hash of the question, so that the
        # same question, however often it occurs, is in one split only.
        if own is None:
            rows = self._read(config.path or config.train_split)
            return [row for row in rows if _split_of(row["question"]) == split]
        if split == "heldout":
            return self._read(own)
        kept_out = {row["question"] for row in self._read(own)}
        rows = self._read(config.path or config.train_split)
        return [row for row in rows if row["question"] not in kept_out]

    def _read(self, part: str) -> list[dict[str, str]]:
        """Question and answer of every row of a local file or of a split on the Hub."""
        config = self.config
        where = f"data set {part}" if config.hub is None else f"data set {config.hub}, split {part}"
        try:
            rows = _file_rows(part) if config.hub is None else _hub_rows(config, part)
        except Exception as error:  # a file or a library of others: it can fail in any way
            # `datasets` wraps what went wrong in a sentence that says nothing of it.
            cause = error.__cause__ or error
            reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
            raise ValueError(f"{where} cannot be read: {reason}") from error
        return list(self._checked(rows, where))

    def _checked(self, rows: Iterable[JsonObject], where: str) -> Iterator[dict[str, str]]:
        config = self.config
        for number, row in enumerate(rows, 1):
            found: dict[str, str] = {}
            for name, column in (("question", config.question), ("answer", config.answer)):
                if column not in row:
                    raise ValueError(
                        f"{where}: there is no column {column!r}, there are {', '.join(row)}"
                    )
                value = row[column]
                if isinstance(value, float) and value.is_integer():
                    value = int(value)  # one 1.5 makes the column's every 1 a 1.0
                # `value != value`: what a table holds where a number is missing.
                if not isinstance(value, str | int | float) or value != value:
                    raise ValueError(
                        f"{where}: row {number}: {column!r} has to be text or a number, not {value!r}"
                    )
                # 0.00001, which Python writes as 1e-05.
                exponent = isinstance(value, float) and "e" in repr(value)
                found[name] = format(Decimal(repr(value)), "f") if exponent else str(value)
            if config.answer_after:
                found["answer"] = found["answer"].rpartition(config.answer_after)[2].strip()
            yield found

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        system = [Message("system", self.config.system)] if self.config.system else []
        return [*system, Message("user", task.data["question"])]

    async def score(self) -> dict[str, float]:
        """Nothing of its own: the answer is judged by a reward function."""
        return {}


def _split_of(question: str) -> Split:
    share = int(hashlib.sha256(question.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return "heldout" if share < HELDOUT_SHARE else "train"


def _file_rows(path: str) -> Iterable[JsonObject]:
    """JSON is read as it is written: a table's column types would make a date of a text."""
    if path.endswith(".parquet"):
        return _load("parquet", data_files=path, split="train")
    text = Path(path).read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _hub_rows(config: DatasetConfig, split: str) -> Iterable[JsonObject]:
    return _load(str(config.hub), config.subset, split=split)


def _load(name: str, *more: str | None, **options: str) -> Iterable[JsonObject]:
    datasets: Any = importlib.import_module("datasets")  # untyped
    return datasets.load_dataset(name, *more, **options)
