"""Rows of a data set as tasks: a Hub name, or a local JSON, JSONL, Parquet or CSV file with the same columns.

Each row has a question, which is text or a list of messages, and a reference answer or several; the policy
answers in plain text, and a reward function judges the answer against the reference (`reward.answer`). Rows
of a split that the data set itself calls `test` or `validation`, or of a second file, can serve as held-out
tasks.

Refuses a row whose question or answer is no text, or holds what a policy of text would not see (`envs.rows`).
"""

import hashlib
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import cast

from pydantic import model_validator

from envs.env import HELDOUT_SHARE, Env, EnvConfig, Split, Task
from envs.message import JsonObject, Message
from envs.rows import SUFFIXES, as_row, cell, conversation, file_rows, hub_rows, text_of


class DatasetConfig(EnvConfig):
    """Where the rows are (`hub` or `path`, exactly one) and which columns to read.

    answers: a column with several right answers, in place of `answer`. system_column: a system text of the
    row's own, where `system` is not to be every row's. A dot looks inside of a column.
    """

    hub: str | None = None
    subset: str | None = None
    path: str | None = None
    train_split: str = "train"
    heldout_split: str | None = None
    heldout_path: str | None = None
    question: str = "question"
    answer: str = "answer"
    answers: str = ""
    answer_after: str = ""
    system: str = ""
    system_column: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetConfig":
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of hub (a name on the Hub) and path (a local file)")
        of_hub = (self.subset, self.heldout_split)
        if self.path is not None and of_hub != (None, None):
            raise ValueError("subset and heldout_split go with hub; with path, give heldout_path")
        if self.hub is not None and self.heldout_path is not None:
            raise ValueError("heldout_path goes with path; with hub, give heldout_split")
        kinds = f"{', '.join(SUFFIXES[:-2])} or {SUFFIXES[-2]}, or in {SUFFIXES[-1]}"
        for path in (self.path, self.heldout_path):
            if path is not None and not Path(path).is_file():
                raise ValueError(f"path {path!r} does not exist; it has to end in {kinds}")
            if path is not None and Path(path).suffix not in SUFFIXES:
                raise ValueError(f"path {path!r} has to end in {kinds}")
        return self


class DatasetEnv(Env):
    """A question from a data set, answered in one turn."""

    name = "dataset"
    reward_names = ()
    config_type = DatasetConfig
    config: DatasetConfig

    def probe(self) -> None:
        """Read the rows of a local file, so that one which cannot be a task is found before a run.

        Raises ValueError. Rows on the Hub are read where tasks are drawn: a check downloads nothing.
        """
        if self.config.path is not None:
            self._rows("train")

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """Endless: the rows of the split, shuffled anew with every pass. Raises ValueError."""
        rows = self._rows(split)
        if not rows:
            raise ValueError(
                f"data set {self.config.hub or self.config.path}: split {split} is empty"
            )
        rng = random.Random(f"{split}/{seed}")
        while True:
            for _, row in rng.sample(rows, len(rows)):
                yield Task(self.name, row)

    def named_tasks(self, split: Split) -> Iterator[tuple[str, Task]]:
        """Each row of the split once, as ("data set sums.jsonl: row 7", its task). Raises ValueError."""
        for name, row in self._rows(split):
            yield name, Task(self.name, row)

    def _rows(self, split: Split) -> list[tuple[str, JsonObject]]:
        config = self.config
        own = config.heldout_split or config.heldout_path
        # Without held-out rows of its own, a data set is cut by the hash of the question, so that the
        # same question, however often it occurs, is in one split only.
        if own is None:
            rows = self._read(config.path or config.train_split)
            return [row for row in rows if _split_of(row[1]["question"]) == split]
        if split == "heldout":
            return self._read(own)
        kept_out = {row["question"] for _, row in self._read(own)}
        rows = self._read(config.path or config.train_split)
        return [row for row in rows if row[1]["question"] not in kept_out]

    def _read(self, part: str) -> list[tuple[str, JsonObject]]:
        """The name and the data of every row of a local file or of a split on the Hub."""
        state = Path(part).stat() if self.config.hub is None else None
        changed = (state.st_mtime_ns, state.st_size) if state else (0, 0)
        # Settings are frozen, and so hashable at run time.
        return _read(self.config, part, changed)  # pyright: ignore[reportArgumentType]

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        said = [Message("user", task.data["question"])]
        if "messages" in task.data:
            said = [Message(one["role"], one["content"]) for one in task.data["messages"]]
        system = task.data.get("system") or self.config.system
        if system and said[0].role != "system":
            said.insert(0, Message("system", system))
        return said

    async def score(self) -> dict[str, float]:
        """Nothing of its own: the answer is judged by a reward function."""
        return {}


# A run asks for the rows of a file several times: when it is checked, and for each split.
@lru_cache(maxsize=4)
def _read(
    config: DatasetConfig, part: str, changed: tuple[int, int]
) -> list[tuple[str, JsonObject]]:
    """changed: when the file was, and its size, so that another one of its name is read anew."""
    where = f"data set {part}" if config.hub is None else f"data set {config.hub}, split {part}"
    rows = file_rows(part) if config.hub is None else hub_rows(config.hub, config.subset, part)
    found: list[tuple[str, JsonObject]] = []
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return found
        except Exception as error:  # a file or a library of others: it can fail in any way
            # `datasets` wraps what went wrong in a sentence that says nothing of it.
            cause = error.__cause__ or error
            reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
            raise ValueError(f"{where} cannot be read: {reason}") from error
        try:
            found.append((f"{where}: row {number}", _data(config, as_row(row))))
        except ValueError as error:
            raise ValueError(f"{where}: row {number}: {error}") from None


def _data(config: DatasetConfig, row: JsonObject) -> JsonObject:
    """A row as a task's data. Raises ValueError."""
    data: JsonObject = {}
    asked = cell(row, config.question)
    if isinstance(asked, list):
        data["messages"] = conversation(cast(list[object], asked), config.question)
        data["question"] = "\n".join(one["content"] for one in data["messages"])
    else:
        data["question"] = text_of(asked, config.question)
    if config.answers:
        right = cell(row, config.answers)
        several = cast(list[object], right) if isinstance(right, list) else [right]
        if not several:
            raise ValueError(f"{config.answers!r} holds no answer")
        data["answers"] = [_reference(config, one, config.answers) for one in several]
        data["answer"] = data["answers"][0]
    else:
        data["answer"] = _reference(config, cell(row, config.answer), config.answer)
    if config.system_column and cell(row, config.system_column) not in (None, ""):
        data["system"] = text_of(cell(row, config.system_column), config.system_column)
    return data


def _reference(config: DatasetConfig, value: object, column: str) -> str:
    try:
        text = text_of(value, column)
    except ValueError as error:
        hint = ": where any of several is right, name the column as `answers`"
        raise ValueError(f"{error}{hint if isinstance(value, list) else ''}") from None
    if not config.answer_after:
        return text
    _, mark, answer = text.rpartition(config.answer_after)
    if not mark or not answer.strip():
        raise ValueError(
            f"{column!r} has nothing after {config.answer_after!r}, which comes before the answer"
        )
    return answer.strip()


def _split_of(question: str) -> Split:
    share = int(hashlib.sha256(question.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return "heldout" if share < HELDOUT_SHARE else "train"
