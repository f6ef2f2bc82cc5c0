"""A tool's arguments: from a method's signature to the model that checks what a policy gives.

Flows in: a method and the class it is a member of. Flows out: its arguments, a pydantic model, a JSON schema.
Refuses, as ToolMistake, what cannot be offered as it is written: an argument without a hint or with one that
JSON has no type for, `*xs` and `**options`.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import PydanticJsonSchemaWarning

from envs.docstring import Docs
from envs.message import JsonObject

_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_SHOWN = 120


class ToolMistake(TypeError):
    """A tool that cannot be offered as it is written: one sentence with class, tool and argument."""


class UnknownHint(ToolMistake):
    """A type hint with a name that does not exist, or that the module defines only further below."""


@dataclass(frozen=True)
class Argument:
    """One argument: the method's parameter, the name by which the policy gives it, and its type."""

    parameter: inspect.Parameter
    name: str
    hint: object

    def adapter(self) -> TypeAdapter[object]:
        """Check values of this argument alone."""
        return _adapter(self.hint)


def arguments_of(
    method: object, function: Callable[..., object], owner: type | None, where: str
) -> tuple[Argument, ...]:
    """The arguments that a policy has to give. method: the class's member, which `function` is inside of.

    Raises ToolMistake, whose sentence begins with `where`.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if hasattr(method, "__get__") and not isinstance(method, staticmethod):
        if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
            raise ToolMistake(f"{where} has no `self` as its first argument")
        if parameters[0].kind not in _COLLECTING:
            parameters = parameters[1:]
    names = getattr(inspect.unwrap(function), "__globals__", {})
    found: list[Argument] = []
    for one in parameters:
        if one.kind in _COLLECTING:
            raise ToolMistake(
                f"{where}: argument {str(one).partition(':')[0]!r} stands for any number of them, which no "
                "schema says: write each out, or take a list or a dict; where a decorator is the cause, put "
                "functools.wraps on the function that it returns"
            )
        hint = _hint(one, names, owner, where)
        name = _public_name(one, hint, owner)
        if any(other.name == name for other in found):
            raise ToolMistake(f"{where}: two arguments are called {name!r}")
        found.append(Argument(one, name, hint))
    return tuple(found)


def _hint(
    parameter: inspect.Parameter, names: dict[str, object], owner: type | None, where: str
) -> object:
    where = f"{where}: argument {parameter.name!r}"
    if parameter.annotation is inspect.Parameter.empty:
        raise ToolMistake(
            f"{where} needs a type hint, such as str, int or list[str]: the policy is told of it"
        )
    holder = SimpleNamespace(__annotations__={"hint": parameter.annotation})
    # What the module has no name for may be a name of the class.
    own = {**names, **vars(owner), owner.__name__: owner} if owner else names
    failure = ""
    for known in (names, own):
        try:
            hint = get_type_hints(holder, known, include_extras=True)["hint"]
        except NameError as error:
            failure = str(error)
        except Exception:  # a hint can be any expression
            raise ToolMistake(f"{where}: its hint {parameter.annotation!r} is no type") from None
        else:
            return hint | None if parameter.default is None and not _takes_none(hint) else hint
    raise UnknownHint(f"{where}: its hint {parameter.annotation!r} is not known: {failure}")


def _takes_none(hint: object) -> bool:
    """True also for what is no type at all, of which the model tells."""
    try:
        _adapter(hint).validate_python(None)
    except ValidationError:
        return False
    except Exception:
        return True
    return True


def _adapter(hint: Any) -> TypeAdapter[object]:
    with warnings.catch_warnings():  # `Field(alias=...)` is no matter of a single value
        warnings.simplefilter("ignore")
        return TypeAdapter(hint)


def _public_name(parameter: inspect.Parameter, hint: object, owner: type | None) -> str:
    """The name of `Field(alias=...)`, or else the parameter's own as it was written."""
    marks = [parameter.default, *(get_args(hint)[1:] if get_origin(hint) is Annotated else ())]
    for mark in marks:
        if isinstance(mark, FieldInfo) and mark.alias:
            return mark.alias
    # Inside of a class Python puts the class's name before `__x`.
    mangled = f"_{owner.__name__.lstrip('_')}__" if owner else "__"
    return (
        parameter.name.removeprefix(mangled[:-2])
        if parameter.name.startswith(mangled)
        else parameter.name
    )


def field_name(place: int) -> str:
    """The model's own name of an argument: pydantic has no fields called `_mode` or `model_config`."""
    return f"a{place}"


def argument_model(
    arguments: Sequence[Argument], docs: Docs, where: str
) -> tuple[type[BaseModel], JsonObject]:
    """The model of all arguments, by their public names, and its JSON schema. Raises ToolMistake."""
    try:
        model, schema = _made(arguments)
    except Exception as error:
        for argument in arguments:
            try:
                _made([argument])
            except Exception as error:  # a hint's own schema can fail in any way
                raise ToolMistake(
                    f"{where}: argument {argument.parameter.name!r}: {_shown(argument.hint)} is no type that "
                    f"a policy can write as JSON, such as str, int or list[str] ({_first_line(error)})"
                ) from None
        raise ToolMistake(f"{where}: {_first_line(error)}") from None
    schema.pop("title", None)
    for argument in arguments:
        described = schema["properties"][argument.name]
        described.pop("title", None)
        text = docs.arguments.get(argument.parameter.name) or docs.arguments.get(argument.name)
        if text and "description" not in described:
            described["description"] = text
    return model, schema


def _made(arguments: Sequence[Argument]) -> tuple[type[BaseModel], JsonObject]:
    named: dict[str, Any] = {field_name(i): _field(one) for i, one in enumerate(arguments)}
    model = create_model("arguments", __config__=ConfigDict(extra="forbid"), **named)
    with warnings.catch_warnings():  # a default that JSON has no word for is left out
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
        return model, model.model_json_schema()


def _field(argument: Argument) -> tuple[object, object]:
    """Type and default for `create_model`; a text in `Annotated[int, "..."]` is a description."""
    hint, marks = argument.hint, ()
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
    described = [Field(description=one) if isinstance(one, str) else one for one in marks]
    annotated: object = Annotated[(hint, Field(alias=argument.name), *described)]
    default = argument.parameter.default
    return annotated, ... if default is inspect.Parameter.empty else default


def _shown(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)[:_SHOWN]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:_SHOWN]
