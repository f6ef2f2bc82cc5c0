"""starts.jsonl in the run folder, as far as it is read back: by which command and code a run began.

`rl.record.provenance` makes its lines, one per start, resumes included. What another release wrote in another
shape is taken as not told.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, WrapValidator

from rl.record.summary import or_none


@dataclass(frozen=True)
class Start:
    """One start; None: not told.

    command: as it was given, program first. commit: of Dorado's checkout; changed: True if files of it
    differed. time: unix seconds.
    """

    command: Annotated[list[str] | None, WrapValidator(or_none)] = None
    commit: Annotated[str | None, WrapValidator(or_none)] = None
    changed: Annotated[bool | None, WrapValidator(or_none)] = None
    time: Annotated[
        Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None, WrapValidator(or_none)
    ] = None


START = TypeAdapter(Start)
