"""The base of the learner's settings, and names that come from a dict of ours. Light: no torch here."""

from collections.abc import Callable, Collection, Iterator
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from trainer.own_function import anchored, is_own


class Section(BaseModel):
    """Base of all settings: frozen, numbers are finite, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_truths(cls, value: object, info: ValidationInfo) -> object:
        """Python takes true for 1, and nobody who writes `steps = true` means that."""
        kind = cls.model_fields[info.field_name].annotation if info.field_name else None
        if takes_numbers(kind) and has_truth(value):
            raise ValueError(f"true and false are no numbers, got {str(value).lower()}")
        return value


def takes_numbers(kind: object) -> bool:
    """True if a type is made of numbers, such as `int | None` or `tuple[float, float]`, and not of truths."""
    leaves = list(_leaves(kind))
    return (int in leaves or float in leaves) and not {bool, object, Any} & set(leaves)


def has_truth(value: object) -> bool:
    """True if a value is true or false, or has one in it."""
    if isinstance(value, dict):
        return any(map(has_truth, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_truth, value))
    return isinstance(value, bool)


def _leaves(kind: object) -> Iterator[Any]:
    """The types that a type is made of."""
    if kind is Any or (isinstance(kind, type) and not get_args(kind)):
        yield kind
    for inner in get_args(kind):
        yield from _leaves(inner)


def one_of(names: Callable[[], Collection[str]], *, own: bool = False) -> AfterValidator:
    """Restrict a string setting to `names()`, asked when the setting is read.

    In place of a `Literal`, for sets whose members are declared elsewhere. own: a function of the user's own
    is one too, and its file is seen from the working directory.
    """

    def known(name: str) -> str:
        possible = names()
        if own and is_own(name):
            return anchored(name, ".")
        if name in possible:
            return name
        *others, last = map(repr, possible)
        said = f"{', '.join(others)} or {last}" if others else last
        said += " (or module:function)" if own else ""
        raise PydanticCustomError("literal_error", "Input should be {names}", {"names": said})

    return AfterValidator(known)
