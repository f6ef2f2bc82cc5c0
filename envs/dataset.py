"""Rows of data sets as tasks: a Hub name, or local JSON, JSONL, Parquet or CSV files with the same columns.

Each row has a question, which is text or a list of messages, and a reference answer or several; the policy
answers in plain text, and reward functions judge the answer (`reward.answer`), those that the row names where
it names some. Rows of a split that the data set itself calls `test` or `validation`, of other files, or of
another value in a column, can serve as held-out tasks.

Refuses a row whose question or answer is no text, or holds what a policy of text would not see (`envs.rows`).
"""

import hashlib
import json
import random
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

from pydantic import model_validator

from envs.dynamic_tool import as_object
from envs.env import HELDOUT_SHARE, Env, EnvConfig, Split, Task
from envs.message import JsonObject, Message
from envs.rows import SUFFIXES, cell, content_text, conversation, each, file_rows, hub_rows, text_of
from envs.text import shown

# Of a task's data: the judges that its row names.
ROW_JUDGES = "row_judges"


class DatasetConfig(EnvConfig):
    """Where the rows are (`hub` or `path`, exactly one) and which columns to read.

    path, heldout_path, train_split, heldout_split: one or several. split_column: a column whose values are
    the splits. answer: "" where rows have none. answers: a column with several right answers, in place of
    `answer`. system_column: a system text of the row's own, where `system` is not to be every row's.
    judges_column: the judges of a row, of those that the environment has; all where it is empty. metadata:
    columns that judges find in `task.data["metadata"]`. A dot looks inside of a column.
    """

    hub: str | None = None
    subset: str | None = None
    path: str | tuple[str, ...] | None = None
    train_split: str | tuple[str, ...] = "train"
    heldout_split: str | tuple[str, ...] | None = None
    heldout_path: str | tuple[str, ...] | None = None
    split_column: str = ""
    question: str = "question"
    answer: str = "answer"
    answers: str = ""
    answer_after: str = ""
    system: str = ""
    system_column: str = ""
    judges_column: str = ""
    metadata: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetConfig":
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of hub (a name on the Hub) and path (a local file)")
        named = self.heldout_split if not self.split_column else None
        if self.path is not None and (self.subset, named) != (None, None):
            raise ValueError(
                "subset and heldout_split go with hub; with path, give heldout_path (or split_column)"
            )
        if self.hub is not None and self.heldout_path is not None:
            raise ValueError("heldout_path goes with path; with hub, give heldout_split")
        if self.split_column and (self.heldout_split is None or self.heldout_path is not None):
            raise ValueError(
                "with split_column, heldout_split says which of its values are held out, such as "
                'heldout_split = "test", and there is no heldout_path'
            )
        kinds = f"{', '.join(SUFFIXES[:-2])} or {SUFFIXES[-2]}, or in {SUFFIXES[-1]}"
        for path in (*several(self.path), *several(self.heldout_path)):
            if not Path(path).is_file():
                raise ValueError(f"path {path!r} does not exist; it has to end in {kinds}")
            if Path(path).suffix not in SUFFIXES:
                raise ValueError(f"path {path!r} has to end in {kinds}")
        return self


def several(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    return (given,) if isinstance(given, str) else given or ()


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
                f"data set {self.config.hub or ', '.join(several(self.config.path))}: split {split} is empty"
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
        every = several(config.path) or several(config.train_split)
        # Without held-out rows of its own, a data set is cut by the hash of the question, so that the
        # same question, however often it occurs, is in one split only.
        if (config.heldout_split or config.heldout_path) is None:
            return [row for row in self._read(every) if _split_of(row[1]["question"]) == split]
        if config.split_column:
            # The rows of a data set on the Hub whose splits are a column are all in its one split.
            rows = self._read(several(config.path) or ("train",))
            train, heldout = (
                [row for row in rows if row[1]["split"] in several(wanted)]
                for wanted in (config.train_split, config.heldout_split)
            )
        else:
            train = self._read(every) if split == "train" else []
            heldout = self._read(several(config.heldout_split) or several(config.heldout_path))
        if split == "heldout":
            return heldout
        kept_out = {row["question"] for _, row in heldout}
        return [row for row in train if row[1]["question"] not in kept_out]

    def _read(self, parts: tuple[str, ...]) -> list[tuple[str, JsonObject]]:
        """The name and the data of every row of local files or of splits on the Hub."""
        found: list[tuple[str, JsonObject]] = []
        for part in parts:
            state = Path(part).stat() if self.config.hub is None else None
            changed = (state.st_mtime_ns, state.st_size) if state else (0, 0)
            # Settings are frozen, and so hashable at run time.
            found += _read(self.config, part, changed)  # pyright: ignore[reportArgumentType]
        return found

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
    return list(each(rows, where, partial(_data, config)))


def _data(config: DatasetConfig, row: JsonObject) -> JsonObject:
    """A row as a task's data. Raises ValueError."""
    data: JsonObject = {}
    asked = cell(row, config.question)
    last = ""
    if isinstance(asked, list):
        said = cast(list[object], asked)
        if config.answer not in row and not config.answers and "." not in config.answer:
            said, last = _without_answer(said, config.question)
        data["messages"] = conversation(said, config.question)
        data["question"] = "\n".join(one["content"] for one in data["messages"])
    else:
        data["question"] = text_of(asked, config.question)
    if config.answers:
        right = cell(row, config.answers)
        several_right = cast(list[object], right) if isinstance(right, list) else [right]
        if not several_right:
            raise ValueError(f"{config.answers!r} holds no answer")
        data["answers"] = [_reference(config, one, config.answers) for one in several_right]
        data["answer"] = data["answers"][0]
    elif last:
        data["answer"] = _reference(config, last, config.question)
    elif config.answer:
        data["answer"] = _reference(config, cell(row, config.answer), config.answer)
    if config.system_column and cell(row, config.system_column) not in (None, ""):
        data["system"] = text_of(cell(row, config.system_column), config.system_column)
    if config.split_column:
        data["split"] = text_of(cell(row, config.split_column), config.split_column)
    if config.judges_column and (named := _judges(row, config.judges_column)):
        data[ROW_JUDGES] = named
    if config.metadata:
        data["metadata"] = {name: _plain(cell(row, name), name) for name in config.metadata}
    return data


def _without_answer(said: list[object], column: str) -> tuple[list[object], str]:
    """A conversation without the assistant's last message, and its text, which is the reference."""
    last = as_object(said[-1]) if said else {}
    if last.get("role") != "assistant":
        return said, ""
    return said[:-1], content_text(last.get("content"), column)


def _judges(row: JsonObject, column: str) -> list[str]:
    """The judges that a row names: one, or a list. Raises ValueError."""
    found = cell(row, column)
    if found in (None, "", []):
        return []
    names = cast(list[object], found) if isinstance(found, list) else [found]
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{column!r} has to name judges, as text, not {shown(name)}")
    return cast(list[str], names)


def _plain(value: object, column: str) -> object:
    """A cell as JSON. Raises ValueError."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{column!r} is no JSON, and judges get JSON: {shown(value)}") from None


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
