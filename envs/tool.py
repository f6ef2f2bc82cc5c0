"""`@tool`: a method of an environment that the policy may call.

The schema comes from the type hints, with what `Annotated[int, Field(ge=2)]` adds to them, and from the
docstring: its first paragraph, and what it says of each argument. Arguments are converted and checked against
the hints before the method runs, and what is wrong with them goes back to the policy as one readable
sentence. A method that cannot be offered as it is written is refused when its class is made.
"""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import FunctionType
from typing import Any, NoReturn, TypeVar, cast, overload

from pydantic import BaseModel, TypeAdapter, ValidationError

from envs.docstring import docs_of
from envs.message import JsonObject, ToolSchema
from envs.text import encodable_json
from envs.tool_arguments import ToolMistake, argument_model, arguments_of, field_name

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

    Plain, or with options: `@tool(read_only=True, seconds=5)`; see `ToolOptions`. Raises ToolMistake.
    """
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise ToolMistake(f"@tool(seconds={seconds!r}): the limit has to be a number above 0")

    def mark(method: F) -> F:
        if not _is_method(method):
            raise ToolMistake(
                f"@tool belongs above a method, not at a {type(method).__name__}; its options go by "
                "name, such as @tool(seconds=5)"
            )
        setattr(method, _MARK, ToolOptions(read_only, seconds))
        return method

    return mark if method is None else mark(method)


class Tool:
    """A tool method of one environment class, with its schema and its argument check.

    Raises ToolMistake where the method cannot be offered.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        owner: type | None = None,
        name: str = "",
        options: ToolOptions | None = None,
    ) -> None:
        """owner: the class whose member `name` the method is; without one the method stands alone.
        options: those of its `@tool`, unless given."""
        function: Callable[..., Any] = getattr(method, "__func__", method)
        self.method = method
        self.name = name or function.__name__
        self.options = options or _options(method) or ToolOptions()
        self.is_async = inspect.iscoroutinefunction(function)
        where = f"tool {owner.__name__}.{self.name}" if owner else f"tool {function.__qualname__}"
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ToolMistake(f"{where} yields: a tool returns its result, all of it at once")
        self.arguments = arguments_of(method, function, owner, where)
        docs = docs_of(_docstring(function, owner, self.name))
        self.model, schema = argument_model(self.arguments, docs, where)
        self.schema = ToolSchema(self.name, docs.summary, schema)

    @property
    def may_be_none(self) -> bool:
        """True if the method says that it returns None, or anything."""
        function: Callable[..., Any] = getattr(self.method, "__func__", self.method)
        told = str(inspect.signature(function).return_annotation)
        return any(word in told for word in ("None", "Optional", "Any"))

    def run(self, env: object, arguments: Mapping[str, Any]) -> object:
        """Call the method of this environment with what `parse` returned; its result may be awaitable."""
        method = cast(Any, self.method)
        bound = method.__get__(env, type(env)) if hasattr(method, "__get__") else method
        by_place: list[object] = []
        by_name: dict[str, object] = {}
        for one in self.arguments:
            name = one.parameter.name
            if one.parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                by_place.append(arguments[name])
            else:
                by_name[name] = arguments[name]
        return bound(*by_place, **by_name)

    def parse(self, arguments: JsonObject) -> JsonObject:
        """The arguments with the types of the method's hints, by the names of its parameters.

        Raises ToolError with a sentence for the policy where they do not fit.
        """
        try:
            model = self._validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ToolError(f"{self.name}: argument {where}: {first['msg'].lower()}") from None
        names = [one.parameter.name for one in self.arguments]
        return {name: getattr(model, field_name(i)) for i, name in enumerate(names)}

    def _validate(self, arguments: JsonObject) -> BaseModel:
        """Take the arguments as they were written where they fit so, else as the JSON they are."""
        arguments = {**arguments, **dict(self._data_in_text(arguments))}
        try:
            return self.model.model_validate(arguments)
        except ValidationError as error:
            wrong = {problem["loc"][0] for problem in error.errors()}
            read = {n: _from_text(v) if n in wrong else v for n, v in arguments.items()}
            return self.model.model_validate(read)

    def _data_in_text(self, arguments: JsonObject) -> Iterator[tuple[str, object]]:
        """Texts that are JSON of another type, where a hint takes that as well as text: `null` for
        `str | None`, `5` for `int | str`."""
        for name, adapter in self._adapters.items():
            value = _from_text(arguments.get(name))
            if isinstance(arguments.get(name), str) and not isinstance(value, str):
                try:
                    adapter.validate_python(value, strict=True)
                except ValidationError:
                    continue
                yield name, value

    @cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        return {one.name: one.adapter() for one in self.arguments if one.hint is not str}


@cache
def tools_of(env_class: type) -> dict[str, Tool]:
    """All `@tool` methods of an environment class, by name, in the order they were written.

    A method that overrides a tool is one too, marked or not; a class takes a tool back with `name = None`.
    Raises ToolMistake.
    """
    return read_tools(env_class)


def read_tools(env_class: type) -> dict[str, Tool]:
    """`tools_of` as the class is now. Raises ToolMistake."""
    found: dict[str, Tool] = {}
    for klass in reversed(env_class.__mro__):
        for name, member in vars(klass).items():
            base = found.get(name)
            if base is not None and member is None:
                del found[name]
                continue
            options = _options(member) or (base and base.options)
            if options is None:
                _refuse_a_hidden_mark(name, member, klass)
            elif not _is_method(member):
                raise ToolMistake(
                    f"tool {klass.__name__}.{name} is no method but of type {type(member).__name__}: write "
                    "it as one, or set it to None to take the tool back"
                )
            else:
                found[name] = Tool(member, klass, name, options)
    return found


def _options(member: object) -> ToolOptions | None:
    """The options of a `@tool` at this member of a class or inside of it."""
    for inner in (member, *(getattr(member, n, None) for n in ("__func__", "fget", "func"))):
        options = getattr(inner, _MARK, None)
        if isinstance(options, ToolOptions):
            return options
    return None


def _is_method(member: object) -> bool:
    return isinstance(member, staticmethod | classmethod) or (
        callable(member) and not isinstance(member, type)
    )


def _refuse_a_hidden_mark(name: str, member: object, klass: type) -> None:
    """A decorator without functools.wraps keeps the mark to itself, and the tool would not be offered."""
    for cell in (member.__closure__ or ()) if isinstance(member, FunctionType) else ():
        try:
            inner = cell.cell_contents
        except ValueError:  # empty as yet
            continue
        if callable(inner) and _options(inner) and getattr(inner, "__name__", "") == name:
            raise ToolMistake(
                f"tool {klass.__name__}.{name}: a decorator above @tool hides it: put functools.wraps on the "
                "function that the decorator returns"
            )


def _docstring(function: Callable[..., Any], owner: type | None, name: str) -> str | None:
    """The method's own, or that of the method it overrides."""
    candidates = [function, *(vars(one).get(name) for one in (owner.__mro__ if owner else ()))]
    return next((text for one in candidates if (text := getattr(one, "__doc__", None))), None)


def _from_text(value: Any) -> Any:
    """Text formats write every argument as a string: read it as JSON where it is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return encodable_json(json.loads(value, parse_constant=_no_constant))
    except (ValueError, RecursionError):
        return value


def _no_constant(text: str) -> NoReturn:
    """Python reads NaN and Infinity, which are no JSON."""
    raise ValueError(text)
