"""summary.json in the run folder, as far as it is read back: how a run ended, and its books.

The run writes it at its end. What another release wrote in another shape is taken as not there.
"""

from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

T = TypeVar("T")


def _or_none(value: object, read: ValidatorFunctionWrapHandler) -> object:
    try:
        return read(value)
    except ValidationError:
        return None


@dataclass(frozen=True)
class Summary:
    """End of a run.

    ledger: per environment, as `rl.samples.ledger.Ledger.counts` has it. None: not told.
    """

    status: Annotated[str | None, WrapValidator(_or_none)] = None
    ledger: Annotated[dict[str, dict[str, int]] | None, WrapValidator(_or_none)] = None


SUMMARY = TypeAdapter(Summary)
