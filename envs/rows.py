"""Rows of a file or of a data set on the Hub, each with the number by which a person finds it.

Out of a row: cells by column (`reward_model.ground_truth` looks inside of one), text, conversations. Refuses,
with a ValueError of one sentence, what is no row, no text, or what a policy of text would not see.
"""

import csv
import importlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from envs.dynamic_tool import as_object
from envs.message import JsonObject, Role
from envs.text import encodable, shown

T = TypeVar("T")
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# Columns that hold what a policy of text would not see, whatever their type is.
UNSEEN = ("image", "images", "video", "videos", "audio", "audios")

Numbered = Iterator[tuple[int, object]]


def file_rows(path: str) -> Numbered:
    """Rows of a file; of JSON lines and CSV the number is the line's.

    JSON is read as it is written: a table's column types would make a date of a text.
    """
    if path.endswith(".parquet"):
        yield from enumerate(_load("parquet", data_files=path, split="train"), 1)
        return
    text = _text(path)
    if path.endswith(".csv"):
        yield from _csv_rows(text)
    elif text.lstrip().startswith("["):
        yield from enumerate(_parsed(text, ""), 1)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _parsed(line, f"row {number}: ")


def hub_rows(name: str, subset: str | None, split: str) -> Numbered:
    """Rows of a split of a data set on the Hub."""
    yield from enumerate(_load(name, subset, split=split), 1)


def each(rows: Numbered, where: str, read: Callable[[JsonObject], T]) -> Iterator[tuple[str, T]]:
    """Yield every row as `read` makes it, with its name, e.g. ("data set sums.jsonl: row 7", ...).

    Raises ValueError that names `where` and the row.
    """
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # a file or a library of others: it can fail in any way
            # `datasets` wraps what went wrong in a sentence that says nothing of it.
            cause = error.__cause__ or error
            reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
            raise ValueError(f"{where} cannot be read: {reason}") from error
        try:
            found = read(as_row(row))
        except ValueError as error:
            raise ValueError(f"{where}: row {number}: {error}") from None
        yield f"{where}: row {number}", found


def as_row(value: object) -> JsonObject:
    """A row as cells by column. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"a row has to be an object, such as {{...}}, not {shown(value)}")
    row = cast(JsonObject, value)
    for name, cell in row.items():
        if (name.lower() in UNSEEN and cell) or _is_image(cell):
            raise ValueError(
                f"the column {name!r} holds {shown(cell)[:60]}, which a policy of text would not see: leave "
                "the row out, or the column, where the question does not need it"
            )
    return row


def cell(row: JsonObject, column: str) -> object:
    """The value of a column; dots look inside of one. Raises ValueError that says which there are."""
    if column in row:
        return row[column]
    value: object = row
    for part in column.split("."):
        inside = as_object(value)
        if part not in inside:
            raise ValueError(f"there is no column {column!r}, there are {', '.join(_names(row))}")
        value = inside[part]
    return value


def text_of(value: object, column: str) -> str:
    """Text or a number as text: 3.0 is 3, and 0.00001 is not 1e-05. Raises ValueError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # one 1.5 makes the column's every 1 a 1.0
    number = isinstance(value, int | float)
    # A table holds nan where a number is missing.
    if not isinstance(value, str) and not (number and math.isfinite(value)):
        raise ValueError(f"{column!r} has to be text or a number, not {shown(value)}")
    exponent = isinstance(value, float) and "e" in repr(value)
    text = format(Decimal(repr(value)), "f") if exponent else encodable(str(value))
    if not text.strip():
        raise ValueError(f"{column!r} is empty")
    return text


def conversation(value: Sequence[object], column: str) -> list[dict[str, str]]:
    """A prompt that is a list of messages, as roles and texts; the user has the last word.

    Raises ValueError.
    """
    found: list[dict[str, str]] = []
    for one in value:
        message = as_object(one)
        if not {"role", "content"} <= message.keys():
            raise ValueError(
                f"{column!r}: a message has to be an object with role and content, not {shown(one)}"
            )
        role = "system" if message["role"] == "developer" else message["role"]
        roles = [name for name in get_args(Role) if name != "tool"]
        if role not in roles:
            raise ValueError(
                f"{column!r}: a message's role has to be one of {', '.join(roles)}, not {shown(role)}"
            )
        found.append({"role": role, "content": content_text(message["content"], column)})
    if not found or found[-1]["role"] != "user":
        raise ValueError(
            f"{column!r}: the last message has to be the user's, whom the policy answers"
        )
    return found


def content_text(value: object, column: str) -> str:
    """Return the text of a message's content: text, or parts that are all text. Raises ValueError."""
    parts = (
        cast(list[object], value) if isinstance(value, list) else [{"type": "text", "text": value}]
    )
    texts: list[str] = []
    for part in parts:
        text = cast(JsonObject, part).get("text") if isinstance(part, dict) else part
        kind = cast(JsonObject, part).get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text":
            raise ValueError(
                f"{column!r}: a message holds {kind!r}, which a policy of text would not see"
            )
        if not isinstance(text, str):
            raise ValueError(f"{column!r}: a message's content has to be text, not {shown(text)}")
        texts.append(text)
    return encodable("".join(texts))


def _is_image(value: object) -> bool:
    while isinstance(value, list):  # of lists, however deep
        value = cast(list[object], value)[0] if value else None
    if isinstance(value, bytes | bytearray):
        return True
    if isinstance(value, Mapping):  # as `datasets` holds an image that it has not decoded
        return isinstance(cast(Mapping[str, object], value).get("bytes"), bytes)
    return type(value).__module__.partition(".")[0] in ("PIL", "torchcodec")


def _names(row: JsonObject) -> Iterator[str]:
    """The columns of a row, those inside of others included."""
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from (f"{name}.{inner}" for inner in cast(JsonObject, value))
        else:
            yield name


def _text(path: str) -> str:
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"row {line}: it is not UTF-8 (byte 0x{data[error.start]:02x}): save the file as UTF-8"
        ) from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if where else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where}not valid JSON: {error.msg} ({place})") from None
    except RecursionError:
        raise ValueError(f"{where}not readable: it is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{where}not readable: {str(error).partition(';')[0]}") from None


def _csv_rows(text: str) -> Numbered:
    # A cell may hold a long conversation.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        header = next(lines, list[str]())
        if len(set(header)) < len(header):
            raise ValueError(f"row 1: two columns have one name: {', '.join(header)}")
        while True:
            number = lines.line_num + 1
            cells = next(lines, None)
            if cells is None:
                return
            if cells and len(cells) != len(header):
                raise ValueError(
                    f"row {number}: it has {len(cells)} cells, and the header {len(header)} columns"
                )
            if cells:
                yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"row {number}: not valid CSV: {error}") from None


def _load(name: str, *more: str | None, **options: str) -> Iterable[JsonObject]:
    datasets: Any = importlib.import_module("datasets")  # untyped
    return datasets.load_dataset(name, *more, **options)
