"""Chats of files and of the Hugging Face Hub, read row by row, and made into the tokens that are trained on.

Flows in: names of files (JSONL, JSON, Parquet, CSV) or of data sets on the Hub. Flows out: chats, each with
its name ("chats.jsonl: row 7"), and token rows with their loss. Whatever is wrong with a row is a ConfigError
of one sentence that names file and row.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from envs.chat import Chat, read_chat
from envs.message import JsonObject, Role
from envs.rows import SUFFIXES, each, file_rows, hub_rows
from envs.text import told
from rl.config_error import ConfigError

if TYPE_CHECKING:
    from rollout.renderer import Renderer
    from trainer.token_rows import TokenRows

# Rows between two reports of reading.
_OFTEN = 1000
_TABLES = (".parquet",)
Named = Iterator[tuple[str, Chat]]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ReadRow(Protocol[T_co]):
    """Reads a row, e.g. `envs.chat.read_chat`. from_table: it is of a table. Raises ValueError."""

    def __call__(self, row: JsonObject, /, *, from_table: bool = ...) -> T_co: ...


@dataclass(frozen=True)
class ChatSource:
    """One file, or one data set on the Hub: name, subset and split."""

    name: str
    subset: str | None = None
    split: str = "train"

    @property
    def is_file(self) -> bool:
        """True for a local file."""
        try:
            return Path(self.name).suffix in SUFFIXES or Path(self.name).exists()
        except OSError:  # a name that is too long for one, or in a folder that may not be read
            return True

    def check(self) -> None:
        """Raise ConfigError unless it can be a source, as far as its name says."""
        kinds = ", ".join(SUFFIXES)
        if self.is_file:
            if Path(self.name).is_dir():
                raise ConfigError(
                    f"--data: {self.name} is a folder: give its files, each with a --data of its own"
                )
            if not Path(self.name).is_file():
                raise ConfigError(f"--data: the file {self.name} does not exist")
            if Path(self.name).suffix not in SUFFIXES:
                raise ConfigError(f"--data: {self.name} has to end in one of {kinds}")
            if self.subset is not None or self.split != "train":
                raise ConfigError(
                    f"--data: --subset and --split are of data sets on the Hub, and {self.name} is a file"
                )
        elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.name):
            raise ConfigError(
                f"--data: {self.name!r} is neither a file that ends in one of {kinds} nor a name on the Hub, "
                "such as owner/name"
            )

    def chats(self) -> Named:
        """Yield each row's name and chat. Raises ConfigError."""
        return self.rows_as("chat", read_chat)

    def rows_as(self, kind: str, read: ReadRow[T]) -> Iterator[tuple[str, T]]:
        """Yield each row's name and what it is read as. kind: what that is called. Raises ConfigError."""
        table = not self.is_file or self.name.endswith(_TABLES)
        where = self.name if self.is_file else f"{self.name}, split {self.split}"
        rows = (
            file_rows(self.name) if self.is_file else hub_rows(self.name, self.subset, self.split)
        )
        found = 0
        try:
            for named in each(rows, where, partial(read, from_table=table)):
                found += 1
                yield named
        except ValueError as error:
            raise ConfigError(f"--data: {error}") from None
        if not found:
            raise ConfigError(f"--data: {where} holds no {kind}")


def read_chats(sources: Sequence[ChatSource]) -> Named:
    """Yield the chats of all sources, in order. Raises ConfigError."""
    for source in sources:
        yield from source.chats()


def texts_of(chat: Chat) -> Iterator[str]:
    """Yield the texts of a chat, to train a new tokenizer on."""
    for tool in chat.tools:
        yield f"{tool.name} {tool.description} {tool.parameters}"
    for message in chat.messages:
        yield message.content
        for call in message.tool_calls:
            yield " ".join([call.name, *(f"{k} {v}" for k, v in call.arguments.items())])


@dataclass(frozen=True)
class ChatRows:
    """Chats as tokens. roles: beside user and assistant. turns: most of the assistant's in one chat.

    sharegpt: how many were in ShareGPT's form.
    """

    rows: "TokenRows"
    roles: frozenset[Role]
    turns: int
    sharegpt: int


def token_rows(
    chats: Named, renderer: "Renderer", max_tokens: int, report: Callable[[int], None]
) -> ChatRows:
    """Return the chats as tokens and their loss, in order.

    max_tokens: of one chat, what a micro-batch holds. `report(rows)` is called every so often. Raises
    ConfigError.
    """
    from trainer.token_rows import TokenRows

    rows = TokenRows("chats")
    roles: set[Role] = set()
    turns = sharegpt = 0
    for name, chat in chats:
        ids, learn = _tokens(name, chat, renderer)
        if len(ids) > max_tokens:
            raise ConfigError(
                f"--data: {name}: its {len(ids)} tokens are more than the {max_tokens} of "
                "learner.micro_batch_tokens: raise that, or leave the row out"
            )
        rows.add(name, ids, learn)
        every: list[Role] = [message.role for message in chat.messages]
        roles.update(every)
        if chat.tools:
            roles.add("tool")
        turns = max(turns, every.count("assistant"))
        sharegpt += chat.sharegpt
        if len(rows) % _OFTEN == 0:
            report(len(rows))
    return ChatRows(rows, frozenset(roles - {"user", "assistant"}), turns, sharegpt)


def _tokens(name: str, chat: Chat, renderer: "Renderer") -> tuple[list[int], list[bool]]:
    first = next(i for i, m in enumerate(chat.messages) if m.role == "assistant")
    silent = {index - first for index in chat.silent}
    try:
        return renderer.demonstration(
            chat.messages[:first], chat.tools, chat.messages[first:], silent
        )
    except Exception as error:  # a template of others can fail in any way
        why = str(error) if isinstance(error, ValueError) else told(error)
        raise ConfigError(f"--data: {name}: {why}") from None
