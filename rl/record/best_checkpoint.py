"""The best checkpoint of a run: `checkpoints/best`, a link to the one with the highest held-out pass rate.

In: evaluations.jsonl and the whole checkpoints beside it. Out: the link, chosen anew each time from what
lies there, so that a run that goes on, or whose steps were undone, needs no memory of it. The rate is the
mean of the environments'; ties go to the earlier step. `checkpoints/evaluated` is a link to the one whose
evaluation goes on. What a link points at is not pruned.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint_folder import PARTIAL, RECORD

EVALUATIONS = "evaluations.jsonl"
BEST, EVALUATED = "best", "evaluated"


@dataclass(frozen=True)
class Best:
    """The best checkpoint, e.g. that of step 40, whose version passed in 0.82 of the held-out tasks."""

    step: int
    pass_rate: float


def find_best(run: Path) -> Best | None:
    """The best of the checkpoints that are there and were evaluated; None where there is none.

    Of two evaluations of one version the later counts; one of which too little was judged does not.
    """
    rates: dict[int, float] = {}
    try:
        lines = (run / EVALUATIONS).read_bytes().splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        try:
            row = json.loads(line)
            played = row.get("tasks", 0) * row.get("samples_per_task", 0)
            if not too_few_judged(row.get("faults", 0), played):
                rates[int(row["version"])] = float(row["mean"]["pass_rate"])
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # half a line, or no episode was judged
            continue
    there = [
        Best(step, rate)
        for step, rate in sorted(rates.items())
        if (run / "checkpoints" / f"step_{step}" / RECORD).is_file()
    ]
    return max(there, key=lambda one: one.pass_rate, default=None)


def too_few_judged(faults: float, played: float = 1) -> bool:
    """True if more than half of an evaluation's episodes, or of 1 as a share of them, ended in a fault: its
    rate is of few tasks."""
    return 2 * faults > played


def link_best(run: Path) -> Best | None:
    """Have `checkpoints/best` point at the best one; without one there is no link. Raises OSError."""
    best = find_best(run)
    if best is None:
        (run / "checkpoints" / BEST).unlink(missing_ok=True)
    else:
        _link(run / "checkpoints" / BEST, f"step_{best.step}")
    return best


def _link(link: Path, target: str) -> None:
    """Have a link point at its neighbour `target`, from one moment to the next."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)


class BestCheckpoint:
    """Keeps the best checkpoint of one run, where that is wanted."""

    def __init__(self, run: Path, say: Callable[[str], None], *, wanted: bool) -> None:
        """`say`: hears of what cannot be kept."""
        self.run = run
        self.say = say
        self.wanted = wanted
        self.best = find_best(run) if wanted else None

    def hold(self, step: int) -> None:
        """Keep the checkpoint of a step, which may not be there yet, while its evaluation goes on."""
        if self.wanted:
            self._try(lambda: _link(self.run / "checkpoints" / EVALUATED, f"step_{step}"))

    def release(self) -> None:
        """The evaluation is over."""
        if self.wanted:
            self._try(lambda: (self.run / "checkpoints" / EVALUATED).unlink(missing_ok=True))

    def written(self, step: int) -> bool:
        """True if the checkpoint of a step is there, or is being written."""
        folder = self.run / "checkpoints" / f"step_{step}"
        return folder.exists() or folder.with_name(f"{folder.name}{PARTIAL}").exists()

    def choose(self) -> None:
        """Choose anew: there is another evaluation, or its checkpoint has become whole."""
        if not self.wanted:
            return
        before = self.best

        def link() -> None:
            self.best = link_best(self.run)

        self._try(link)
        if self.best is not None and self.best != before:
            self.say(
                f"the best checkpoint is that of step {self.best.step}: held-out pass rate "
                f"{self.best.pass_rate:.2f}"
            )

    def _try(self, act: Callable[[], None]) -> None:
        """Do something to the links. A file system without links must not end the run."""
        try:
            act()
        except OSError as error:
            self.say(f"checkpoints/{BEST} cannot be kept: {error}")
