"""`@tool`: a method of an environment that the policy may call.

The schema comes from the type hints and the first line of the docstring; arguments are converted and
checked against the hints before the method runs, and what is wrong with them goes back to the policy
as one readable sentence.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from envs.message import ToolSchema

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__dorado_tool__"


class ToolError(Exception):
    """Raised by a tool to tell the policy that the call did not work; the episode goes on."""


@dataclass(frozen=True)
class ToolOptions:
    """read_only: a call changes nothing, so it may be made again, and answers the same until something else
    changes the world (noise may spoil its answers). seconds: how long a call may take, where
    that is shorter than the environment's deadline; then the policy is told so, and the episode goes on."""

    read_only: bool = False
    seconds: float | None = None


@overload
def tool(method: F, /) -> F: ...
@overload
def tool(*, read_only: bool = False, seconds: float | None = None) -> Callable[[F], F]: ...
def tool(
    method: F | None = None, /, *, read_only: bool = False, seconds: float | None = None
) -> F | Callable[[F], F]:
    """Offer this method to the policy. `async def` runs on the event loop; `def` runs in a thread.

    Plain, or with options: `@tool(read_only=True, seconds=5)`; see `ToolOptions`.
    """

    def mark(method: F) -> F:
        setattr(method, _MARK, ToolOptions(read_only, seconds))
        return method

    return mark if method is None else mark(method)


class Tool:
    """A tool method of one environment class, with its schema and its argument check."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.name = method.__name__
        self.options: ToolOptions = getattr(method, _MARK, ToolOptions())
        self.method = method
        self.is_async = inspect.iscoroutinefunction(method)
        self.arguments = _argument_model(method)
        schema = self.arguments.model_json_schema()
        schema.pop("title", None)
        for prop in schema.get("properties", {}).values():
            prop.pop("title", None)
        description = (inspect.getdoc(method) or "").split("\n", 1)[0]
        self.schema = ToolSchema(self.name, description, schema)

    def parse(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments with the types of the method's hints.

        Raises ToolError with a sentence for the policy where they do not fit.
        """
        try:
            model = self._validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ToolError(f"{self.name}: argument {where}: {first['msg'].lower()}") from None
        return {name: getattr(model, name) for name in self.arguments.model_fields}

    def _validate(self, arguments: dict[str, Any]) -> BaseModel:
        """Take the arguments as they were written where they fit so, else as the JSON they are."""
        try:
            return self.arguments.model_validate(arguments)
        except ValidationError as error:
            wrong = {problem["loc"][0] for problem in error.errors()}
            read = {n: _from_text(v) if n in wrong else v for n, v in arguments.items()}
            return self.arguments.model_validate(read)


@cache
def tools_of(env_class: type) -> dict[str, Tool]:
    """All `@tool` methods of an environment class, by name, in the order they were written."""
    found: dict[str, Tool] = {}
    for klass in reversed(env_class.__mro__):
        for name, member in vars(klass).items():
            if hasattr(member, _MARK):
                found[name] = Tool(member)
    return found


def _argument_model(method: Callable[..., Any]) -> type[BaseModel]:
    hints = get_type_hints(method)
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(method).parameters.items())[1:]:
        if name not in hints:
            raise TypeError(f"tool {method.__qualname__}: argument {name!r} needs a type hint")
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (hints[name], default)
    config = ConfigDict(extra="forbid")
    return create_model(method.__name__, __config__=config, **fields)


def _from_text(value: Any) -> Any:
    """Text formats write every argument as a string: read it as JSON where it is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
