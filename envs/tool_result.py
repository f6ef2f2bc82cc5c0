"""A tool's result as the text that the policy reads: text as it is, data as JSON.

Data are mappings, sequences, sets, iterators, dataclasses, models of pydantic and attrs, named tuples,
enumerations and arrays, unless their class writes a `__str__` of its own. Everything else is `str(result)`.
"""

import dataclasses
import enum
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

# What these classes print is for people who read programs.
_PRINTED = (object.__str__, BaseModel.__str__)
# Python writes no whole number of more than 4300 digits.
_MOST_BITS = 14_000


class LongNumber(ValueError):
    """A result holds a whole number that is too long to be written; the message says so."""


def result_text(result: object) -> str:
    """Return the text for the policy. Raises LongNumber, what the result's own methods raise, and
    RecursionError for data that hold themselves."""
    if isinstance(result, enum.Enum):
        return result_text(result.value)
    _refuse_long(result)
    if isinstance(result, bytes | bytearray):
        return result.decode(errors="replace")
    if _is_array(result):
        return result_text(cast(Any, result).tolist())
    if isinstance(result, str) or type(result).__str__ not in _PRINTED or not _is_data(result):
        return str(result)
    return json.dumps(_plain(result), ensure_ascii=False)


def _is_data(value: object) -> bool:
    return isinstance(value, BaseModel) or _fields(value) is not None or _is_many(value)


def _plain(value: object) -> object:
    """The value in JSON's words; what JSON has no word for as text."""
    _refuse_long(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="replace")
    if _is_array(value):
        return _plain(cast(Any, value).tolist())
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    fields = _fields(value)
    if fields is not None:
        return {_key(name): _plain(one) for name, one in fields.items()}
    if _is_many(value):
        return [_plain(one) for one in cast(Iterable[object], value)]
    return to_jsonable_python(value, fallback=str)


def _refuse_long(value: object) -> None:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise LongNumber("the result has a number that is too long to be written")


def _fields(value: object) -> Mapping[object, object] | None:
    """The fields of a record by name; None for what is no record."""
    if isinstance(value, Mapping):
        return cast(Mapping[object, object], value)
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    some: Any = value
    if isinstance(value, tuple) and hasattr(some, "_fields"):
        return some._asdict()
    if not hasattr(some, "__attrs_attrs__"):
        return None
    return {one.name: getattr(some, one.name) for one in some.__attrs_attrs__}


def _is_many(value: object) -> bool:
    return isinstance(value, Sequence | Set | ValuesView | Iterator)


def _is_array(value: object) -> bool:
    """True for arrays and tensors, which leave out their middle when they are printed."""
    return hasattr(value, "tolist") and hasattr(value, "dtype") and not isinstance(value, type)


def _key(key: object) -> str | int | float | bool | None:
    plain = _plain(key)
    return plain if plain is None or isinstance(plain, str | int | float) else str(key)
