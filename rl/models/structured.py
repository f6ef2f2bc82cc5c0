"""Answers by schema: finds the JSON object in what a model wrote, and checks it against the schema's outline.

Checked: types, required keys, enumerations, bounds of numbers and lists, in whatever depth; a server that
can draws tokens from the schema alone, one that cannot writes what it likes.
"""

import json
from collections.abc import Iterator
from typing import Any, cast

from envs.message import JsonObject
from envs.text import encodable_json

_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def fitting(text: str, schema: JsonObject) -> str | None:
    """The last JSON object in `text` that fits, as JSON; None where there is none."""
    meant = (_as_listed(value, schema) for value in _objects(text))
    found = [value for value in meant if fits(value, schema)]
    return json.dumps(encodable_json(found[-1]), ensure_ascii=False) if found else None


def _objects(text: str) -> Iterator[object]:
    """Outermost JSON objects in a text, in order."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            yield value
        place = text.find("{", end)


def _as_listed(value: object, schema: JsonObject) -> object:
    """The value with the words of enumerations as the schema writes them: "Yes " is "yes"."""
    if isinstance(value, str) and "enum" in schema:
        words = [one for one in cast(list[object], schema["enum"]) if isinstance(one, str)]
        same = [one for one in words if one.casefold() == value.strip().casefold()]
        return same[0] if len(same) == 1 else value
    if isinstance(value, list):
        inside = schema.get("items", {})
        return [_as_listed(one, inside) for one in cast(list[object], value)]
    if isinstance(value, dict):
        known = cast(dict[str, Any], schema.get("properties", {}))
        fields = cast(dict[str, object], value)
        return {name: _as_listed(one, known.get(name, {})) for name, one in fields.items()}
    return value


def fits(value: object, schema: JsonObject) -> bool:
    """True if a JSON value has the outline of `schema`."""
    kind = schema.get("type")
    if isinstance(kind, str) and not _is(value, kind):
        return False
    if "enum" in schema and value not in cast(list[object], schema["enum"]):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, list):
        items = cast(list[object], value)
        inside = schema.get("minItems", 0) <= len(items) <= schema.get("maxItems", len(items))
        return inside and all(fits(item, schema.get("items", {})) for item in items)
    if isinstance(value, dict):
        fields = cast(dict[str, object], value)
        known = cast(dict[str, Any], schema.get("properties", {}))
        if not set(schema.get("required", ())) <= fields.keys():
            return False
        return all(fits(fields[name], known[name]) for name in fields.keys() & known.keys())
    return True


def _is(value: object, kind: str) -> bool:
    return isinstance(value, _KINDS.get(kind, (object,))) and (
        kind == "boolean" or not isinstance(value, bool)
    )
