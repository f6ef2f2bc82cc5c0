"""The base of the learner's settings, and names that come from a dict of ours. Light: no torch here."""

from collections.abc import Callable, Collection

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Base of all settings: frozen, numbers are finite, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def one_of(names: Callable[[], Collection[str]]) -> AfterValidator:
    """Restrict a string setting to `names()`, asked when the setting is read.

    In place of a `Literal`, for sets whose members are declared elsewhere.
    """

    def known(name: str) -> str:
        possible = names()
        if name in possible:
            return name
        *others, last = map(repr, possible)
        said = f"{', '.join(others)} or {last}" if others else last
        raise PydanticCustomError("literal_error", "Input should be {names}", {"names": said})

    return AfterValidator(known)
