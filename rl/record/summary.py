"""summary.json in the run folder, as far as it is read back: how a run ended, and its books.

The run writes it at its end. What another release wrote in another shape is taken as not there.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

T = TypeVar("T")


def or_none(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """Returns what `read` makes of a value; None where that is of another shape."""
    try:
        return read(value)
    except ValidationError:
        return None


@dataclass(frozen=True)
class Summary:
    """End of a run.

    ledger: per environment, as `rl.samples.ledger.Ledger.counts` has it. eval: pass rates per environment, of
    the evaluation "before" and "after". None: not told.
    """

    status: Annotated[str | None, WrapValidator(or_none)] = None
    ledger: Annotated[dict[str, dict[str, int]] | None, WrapValidator(or_none)] = None
    steps: Annotated[int | None, WrapValidator(or_none)] = None
    eval: Annotated[dict[str, dict[str, float]] | None, WrapValidator(or_none)] = None

    def rates(self) -> dict[str, tuple[float | None, float | None]]:
        """Pass rates before and after training, by environment."""
        told = self.eval or {}
        before, after = told.get("before", {}), told.get("after", {})
        return {env: (before.get(env), after.get(env)) for env in before.keys() | after.keys()}


SUMMARY = TypeAdapter(Summary)


def read_summary(folder: Path) -> Summary:
    """Read a run's summary; one that tells nothing where there is none that can be read."""
    try:
        return SUMMARY.validate_python(json.loads((folder / "summary.json").read_bytes()))
    except (OSError, ValueError):
        return Summary()
