"""Tools that are known only at reset: a server's own, or the actions of a foreign environment.

In: a name, a description, a JSON schema, and what makes a call. Arguments are checked against the schema
as `@tool` checks them against hints: what is wrong goes back to the policy as one sentence. The check is a
light one (required, unknown, types, enum, bounds; `$ref` within the schema); the server has the last word.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from envs.message import ToolSchema
from envs.tool import Tool, ToolError, ToolOptions

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
}


@dataclass(frozen=True)
class DynamicTool:
    """A tool by its schema: `DynamicTool(ToolSchema("guess", "", schema), call)`.

    `call` gets the checked arguments and returns the text for the policy; it may raise ToolError.
    """

    schema: ToolSchema
    call: Callable[[dict[str, Any]], Awaitable[str]]
    options: ToolOptions = field(default_factory=ToolOptions)

    @property
    def name(self) -> str:
        """How the policy calls it."""
        return self.schema.name

    def parse(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, those read as JSON that fit the schema only so.

        Raises ToolError with a sentence for the policy where they do not fit.
        """
        root = self.schema.parameters
        properties = root.get("properties", {})
        for name in root.get("required", []):
            if name not in arguments:
                raise ToolError(f"{self.name}: argument {name}: field required")
        read: dict[str, Any] = {}
        for name, value in arguments.items():
            if name not in properties and root.get("additionalProperties") is False:
                raise ToolError(f"{self.name}: argument {name}: unknown")
            wanted = properties.get(name, {})
            found, problem = _read(value, wanted, root)
            if problem:
                raise ToolError(f"{self.name}: argument {name}: {problem}")
            read[name] = found
        return read


AnyTool = Tool | DynamicTool


def object_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of arguments that has all that readers of tool schemas count on."""
    return {"type": "object", "properties": {}, **schema}


def _read(value: Any, schema: Any, root: dict[str, Any]) -> tuple[Any, str]:
    """The value as it is where it fits, else as the JSON it is, and what is wrong with it ("": nothing)."""
    problem = _problem(value, schema, root)
    if problem and isinstance(value, str):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value, problem
        return parsed, _problem(parsed, schema, root)
    return value, problem


def _problem(value: Any, schema: Any, root: dict[str, Any]) -> str:
    schema = resolve(schema, root)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            problems = [_problem(value, one, root) for one in schema[choice]]
            return "" if "" in problems else "; or ".join(dict.fromkeys(problems))
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if options is not None and value not in options:
        return f"has to be one of {', '.join(map(repr, options))}, not {value!r}"
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if set(types) <= set(_TYPES) and types and not any(_TYPES[t](value) for t in types):
        return f"has to be {' or '.join(types)}, not {value!r}"
    if _TYPES["number"](value):
        if value < schema.get("minimum", value):
            return f"has to be at least {schema['minimum']}, not {value!r}"
        if value > schema.get("maximum", value):
            return f"has to be at most {schema['maximum']}, not {value!r}"
    return ""


def resolve(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """A schema with a local `$ref` followed; one that says nothing where there is nothing to follow."""
    for _ in range(8):  # a schema may refer to itself
        if not isinstance(schema, dict) or "$ref" not in schema:
            break
        found: Any = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        schema = found
    return schema if isinstance(schema, dict) and "$ref" not in schema else {}
