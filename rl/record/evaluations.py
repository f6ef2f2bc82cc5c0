"""evaluations.jsonl in the run folder, as far as it is read back: how good which policy version was.

`rl.samples.heldout` makes its lines, one per evaluation. A line of another release has what it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from rl.record.best_checkpoint import EVALUATIONS, too_few_judged

Share = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Rate:
    """A pass rate with its 95 % interval, e.g. 0.71 (0.66 to 0.76)."""

    pass_rate: Share
    low: Share | None = None
    high: Share | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.pass_rate:.2f}"
        return f"{self.pass_rate:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation.

    step: after which it began. when: "before", "after" or "step_N", as in the split of its trajectories.
    version: the oldest that wrote a token. lag: the learner's version at its end minus that one. mean: of the
    environments; None where no episode was judged.
    """

    step: int
    version: int
    when: str = ""
    lag: int = 0
    time: Share = 0.0
    tasks: int = 0
    faults: int = 0
    samples_per_task: int = 1
    mean: Rate | None = None
    env: dict[str, Rate] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The split that the index names its trajectories by."""
        return f"heldout-{self.when}"


EVALUATION = TypeAdapter(EvaluationRow)


def read_evaluations(folder: Path) -> list[EvaluationRow]:
    """Read the evaluations of a run, in the order in which they ended; lines that are none are left out."""
    try:
        lines = (folder / EVALUATIONS).read_bytes().splitlines()
    except OSError:
        return []
    found: list[EvaluationRow] = []
    for line in lines:
        try:
            found.append(EVALUATION.validate_json(line))
        except ValidationError:
            continue
    return found


def best_of(rows: Sequence[EvaluationRow]) -> EvaluationRow | None:
    """The evaluation with the highest mean; ties go to the earlier version. None where none has one.

    As for the best checkpoint, the later of two of one version counts, and one of which too little was judged
    does not.
    """
    last = {
        row.version: row
        for row in rows
        if row.mean is not None and not too_few_judged(row.faults, row.tasks * row.samples_per_task)
    }
    judged = [row for _, row in sorted(last.items())]
    return max(judged, key=lambda row: row.mean.pass_rate if row.mean else 0.0, default=None)
