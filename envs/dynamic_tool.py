"""Tools that are known only at reset: a server's own, or the actions of a foreign environment.

In: a name, a description, a JSON schema, and what makes a call. Arguments are checked against the schema by
the package `jsonschema`, as `@tool` checks them against hints: what is wrong goes back to the policy as one
sentence. A part of a schema that says nothing to us (an unknown type, a reference to nowhere or to itself)
refuses nothing: the server has the last word. References are followed within the schema only, never over a
network.
"""

import copy
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from envs.message import JsonObject, ToolSchema
from envs.optional import needed_by
from envs.text import encodable_json
from envs.tool import Tool, ToolError, ToolOptions

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

# A policy may write a value of any length; a sentence shows so much of it.
_SHOWN = 200


@dataclass(frozen=True)
class DynamicTool:
    """A tool by its schema: `DynamicTool(ToolSchema("guess", "", schema), call)`.

    `call` gets the checked arguments and returns the text for the policy; it may raise ToolError. Raises
    ValueError where the package `jsonschema` is missing.
    """

    schema: ToolSchema
    call: Callable[[JsonObject], Awaitable[str]]
    options: ToolOptions = field(default_factory=ToolOptions)

    def __post_init__(self) -> None:
        _ = self._validator  # a missing package is found at reset, before the policy's first call

    def calling(self, call: Callable[[JsonObject], Awaitable[str]]) -> "DynamicTool":
        """The same tool of another episode: `call` makes its calls, and the check of arguments is shared."""
        made = copy.copy(self)
        object.__setattr__(made, "call", call)
        return made

    @property
    def name(self) -> str:
        """How the policy calls it."""
        return self.schema.name

    def parse(self, arguments: JsonObject) -> JsonObject:
        """Return the arguments as written; text that does not fit the schema is read as JSON.

        Raises ToolError with a sentence for the policy where they do not fit, or hold a number that no
        server could be sent.
        """
        read = {name: self._read(name, value) for name, value in arguments.items()}
        for name, value in read.items():
            if not _is_json(value):
                raise ToolError(
                    f"{self.name}: argument {name}: has to be JSON, which has no NaN or Infinity"
                )
            for error in self._errors(self._property(name), value):
                raise ToolError(f"{self.name}: {_sentence(error, name)}")
        for error in self._errors(self.schema.parameters, read):
            raise ToolError(f"{self.name}: {_sentence(error)}")
        return read

    @cached_property
    def _validator(self) -> "Validator":
        with needed_by("a tool that is known only at reset"):
            from jsonschema.validators import Draft202012Validator, validator_for
            from referencing import Registry
        chosen = validator_for(self.schema.parameters, default=Draft202012Validator)
        return chosen(self.schema.parameters, registry=Registry())

    def _property(self, name: str) -> object:
        return as_object(self.schema.parameters.get("properties")).get(name, {})

    def _read(self, name: str, value: object) -> object:
        """Text formats write every argument as a string, and null as one too."""
        schema = self._property(name)
        if value == "null" and self._takes_null(schema):
            return None
        if isinstance(value, str) and any(self._errors(schema, value)):
            try:
                return encodable_json(json.loads(value))
            except (ValueError, RecursionError):
                return value
        return value

    def _takes_null(self, schema: object) -> bool:
        """True for a schema that names null among other types; one that takes everything names none."""
        other: tuple[object, ...] = (0, [], {})
        anything = not any(any(self._errors(schema, one)) for one in other)
        return not anything and not any(self._errors(schema, None))

    def _check(self, schema: object, value: object) -> "Iterator[ValidationError]":
        part = self._validator.evolve(schema=schema)  # pyright: ignore[reportUnknownMemberType]
        return iter(part.iter_errors(cast(Any, value)))

    def _errors(self, schema: object, value: object) -> "Iterator[ValidationError]":
        """Check a value against the schema or a part of it; a part that says nothing to us passes.

        Raises what `jsonschema` raises for a schema that is wrong otherwise: the environment's fault.
        """
        from jsonschema.exceptions import UnknownType
        from referencing.exceptions import Unresolvable

        try:
            yield from self._check(schema, value)
        except (UnknownType, Unresolvable, RecursionError):
            return


def _is_json(value: object) -> bool:
    """True for what strict JSON can say."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


AnyTool = Tool | DynamicTool


def as_object(value: object) -> JsonObject:
    """Return a JSON object as it is, and anything else as an empty one."""
    return cast(JsonObject, value) if isinstance(value, dict) else {}


def object_schema(schema: JsonObject) -> JsonObject:
    """Complete a schema of arguments with all that readers of tool schemas count on."""
    return {"type": "object", "properties": {}, **schema}


def resolve(schema: object, root: JsonObject) -> JsonObject:
    """Follow a local `$ref`; return a schema that says nothing where there is nothing to follow."""
    found = as_object(schema)
    for _ in range(8):  # a schema may refer to itself
        if "$ref" not in found:
            return found
        parts = str(found["$ref"]).removeprefix("#/").split("/")
        found = root
        for part in parts:
            found = as_object(found.get(part))
    return {}


def _sentence(error: "ValidationError", *above: str) -> str:
    """Name the argument (`point.x` inside of one) and what is wrong with it."""
    where = [*above, *(str(part) for part in error.absolute_path)]
    given: Any = error.instance
    wanted: Any = error.validator_value
    if error.validator == "required":
        where += [name for name in wanted if name not in given][:1]
    if error.validator == "additionalProperties" and isinstance(error.schema, dict):
        known: Any = error.schema.get("properties", {})
        where += [name for name in given if name not in known][:1]
    problem = _problem(error)
    return f"argument {'.'.join(where)}: {problem}" if where else problem


def _problem(error: "ValidationError") -> str:
    wanted: Any = error.validator_value
    value = _shown(error.instance)
    match error.validator:
        case "required":
            return "field required"
        case "additionalProperties" if wanted is False:
            return "unknown"
        case "type":
            types = [wanted] if isinstance(wanted, str) else wanted
            return f"has to be {' or '.join(types)}, not {value}"
        case "enum" | "const":
            options = wanted if error.validator == "enum" else [wanted]
            return f"has to be one of {', '.join(map(repr, options))}, not {value}"
        case "minimum":
            return f"has to be at least {wanted}, not {value}"
        case "maximum":
            return f"has to be at most {wanted}, not {value}"
        case "anyOf" | "oneOf" if error.context:
            return "; or ".join(dict.fromkeys(_inner(one) for one in error.context))
        case _:
            return error.message[:_SHOWN]


def _inner(error: "ValidationError") -> str:
    """One of several choices: its place is told only where it lies deeper than the choice."""
    deeper = bool(error.relative_path) or error.validator in ("required", "additionalProperties")
    return _sentence(error).removeprefix("argument ") if deeper else _problem(error)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "a value that is nested so deeply"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
