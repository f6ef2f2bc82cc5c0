"""Rows of a data set as tasks: a Hub name, or local JSONL or Parquet with the same columns.

Each row has a question and a reference answer; the policy answers in plain text, and a reward function
judges the answer against the reference (`reward.answer`). Rows of a split that the data set itself
calls `test` or `validation` can serve as held-out tasks.
"""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import model_validator

from envs.env import HELDOUT_SHARE, Env, EnvConfig, Split, Task
from envs.message import Message


class DatasetConfig(EnvConfig):
    """Where the rows are (`hub` or `path`, exactly one) and which columns to read."""

    hub: str | None = None
    subset: str | None = None
    path: str | None = None
    train_split: str = "train"
    heldout_split: str | None = None
    question: str = "question"
    answer: str = "answer"
    system: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetConfig":
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of hub (a name on the Hub) and path (a local file)")
        if self.path is not None and Path(self.path).suffix not in (".jsonl", ".json", ".parquet"):
            raise ValueError(f"path {self.path!r} has to end in .jsonl, .json or .parquet")
        if self.path is not None and not Path(self.path).is_file():
            raise ValueError(f"path {self.path!r} does not exist")
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

    def _rows(self, split: Split) -> list[dict[str, Any]]:
        import datasets

        config = self.config
        own_split = config.heldout_split if split == "heldout" else None
        name = own_split or config.train_split
        if config.hub is not None:
            table: Any = datasets.load_dataset(config.hub, config.subset, split=name)
        else:
            kind = "parquet" if str(config.path).endswith(".parquet") else "json"
            table = datasets.load_dataset(kind, data_files=config.path, split="train")
        for column in (config.question, config.answer):
            if column not in table.column_names:
                raise ValueError(
                    f"data set {config.hub or config.path}: there is no column {column!r}, "
                    f"there are {', '.join(table.column_names)}"
                )
        rows = [
            {"question": str(row[config.question]), "answer": str(row[config.answer])}
            for row in table
        ]
        # Without a held-out split of its own, a data set is cut by the hash of the question, so that
        # the same question, however often it occurs, is in one split only.
        if config.heldout_split is None or config.path is not None:
            return [row for row in rows if _split_of(row["question"]) == split]
        if split == "train":
            kept_out = {row["question"] for row in self._rows("heldout")}
            return [row for row in rows if row["question"] not in kept_out]
        return rows

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
