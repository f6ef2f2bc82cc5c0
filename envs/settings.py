"""Reads an environment's own settings, the table `[env.config]`, as strictly as a run reads its other tables.

In: plain values of a file or the command line. Out: the environment's settings, or BadSettings with the key.
pydantic takes `true` for 1, "2" for 2 and "yes" for true; here each is refused, as are numbers that are not
finite, in whatever depth, and negative seeds. What an author's own validators make of a text is theirs.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from envs.env import EnvConfig
from envs.message import JsonObject
from envs.text import encodable_json, shown

# pydantic's errors where a value is of another kind and could have been read all the same.
_OF_KIND = {"int_type", "float_type", "decimal_type", "bool_type"}
_ANYTHING: tuple[object, ...] = (Any, object)


class BadSettings(ValueError):
    """Settings that an environment does not take; the message names the key."""


def read_settings(config_type: type[EnvConfig], values: JsonObject) -> EnvConfig:
    """The settings that these values are. Raises BadSettings with one sentence."""
    try:
        settings = config_type.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        detail = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = ", ".join(config_type.model_fields) or "none"
            detail = f"unknown key; known here are {known}"
        raise BadSettings(f"{_key(first['loc'])}: {detail}") from None
    for place, why in (*_of_another_kind(config_type, values), *_unusable(settings, values)):
        raise BadSettings(f"{_key(place)}: {why}")
    return settings


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, ("config", *place)))


def _of_another_kind(
    config_type: type[EnvConfig], values: JsonObject
) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """Places of values that pydantic would turn into a number or a truth, by its strict reading of JSON."""
    try:
        text = json.dumps(encodable_json(values), default=str)
        config_type.model_validate_json(text, strict=True)
    except ValidationError as error:
        for one in error.errors():
            given: object = one["input"]
            if one["type"] not in _OF_KIND:
                continue
            place = _there(one["loc"], values)
            if one["type"] == "bool_type":
                yield place, f"it has to be true or false, got {shown(given)}"
            elif isinstance(given, bool):
                yield place, _no_number(given)
            elif isinstance(given, str):
                yield place, f"it has to be a number, got the text {shown(given)}"


def _there(loc: tuple[int | str, ...], values: object) -> tuple[int | str, ...]:
    """A place without what pydantic adds of its own, such as the member of a union."""
    place: list[int | str] = []
    for part in loc:
        if isinstance(values, dict) and part in values:
            values = cast(JsonObject, values)[str(part)]
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = cast(list[object], values)[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _unusable(
    settings: EnvConfig, values: JsonObject
) -> Iterator[tuple[tuple[int | str, ...], str]]:
    for name, value in values.items():
        field, read = type(settings).model_fields.get(name), getattr(settings, name, None)
        number = isinstance(read, int | float) and not isinstance(read, bool)
        if number and isinstance(value, bool):  # as a choice of numbers takes it
            yield (name,), _no_number(value)
        if not number or field is None or field.annotation in _ANYTHING:
            # A field of numbers that takes an infinite one has a use for it.
            for place in _infinite(value, (name,)):
                yield place, "it has to be a finite number"
        if field is None or name.rpartition("_")[2] != "seed" or _says_bounds(field):
            continue
        if isinstance(read, int | float) and read < 0:
            yield (name,), f"a seed is a whole number from 0 on, got {read}"


def _says_bounds(field: FieldInfo) -> bool:
    """True if an author has said that a field takes negative numbers: by a bound, or by its default."""
    default: object = field.default
    bounded = any(hasattr(one, "ge") or hasattr(one, "gt") for one in field.metadata)
    return bounded or (isinstance(default, int) and default < 0)


def _infinite(value: object, place: tuple[int | str, ...]) -> Iterator[tuple[int | str, ...]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict):
        for key, one in cast(JsonObject, value).items():
            yield from _infinite(one, (*place, key))
    elif isinstance(value, list | tuple):
        for index, one in enumerate(cast(list[object], value)):
            yield from _infinite(one, (*place, index))


def _no_number(value: bool) -> str:
    return f"true and false are no numbers, got {str(value).lower()}"
