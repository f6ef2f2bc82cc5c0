"""Settings of on-policy distillation: which teacher scores which environment. Light: no torch here."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, PositiveFloat, model_validator

from trainer.advantage import BATCH_ADVANTAGES, GROUP_ADVANTAGES
from trainer.section import Section, one_of

OutcomeName = Annotated[
    str, one_of(lambda: [*dict.fromkeys([*GROUP_ADVANTAGES, *BATCH_ADVANTAGES])])
]
Folder = Annotated[str, Field(min_length=1)]
# Before the name of a teacher that is a service: its log-probs come with the samples.
SERVED = "model:"


class DistilConfig(Section):
    """Teachers of advantage `distill` (`trainer.distillation`), policies that stay as they are.

    teacher: of every environment that `teachers` does not name. teachers: by the environment's label. Each is
    a folder, or of a run its last checkpoint (runs/NAME), its best (runs/NAME@best) or a step's
    (runs/NAME@STEP), or a service that has scored the samples ("model:NAME"). outcome: an advantage of the
    rewards to add; none where it is missing. outcome_weight: its factor.
    """

    teacher: Folder | None = None
    teachers: dict[str, Folder] = {}
    outcome: OutcomeName | None = None
    outcome_weight: PositiveFloat = 1.0

    def teacher_of(self, env: str) -> str | None:
        """The teacher of an environment; None where it has none."""
        return self.teachers.get(env, self.teacher)

    def folders(self) -> Iterator[str]:
        """Each teacher once that the learner has to read."""
        yield from (one for one in self._named() if not one.startswith(SERVED))

    def services(self) -> Iterator[str]:
        """The name of each teacher that is a service, once."""
        yield from (one.removeprefix(SERVED) for one in self._named() if one.startswith(SERVED))

    def _named(self) -> Iterator[str]:
        named = ([] if self.teacher is None else [self.teacher]) + list(self.teachers.values())
        yield from dict.fromkeys(named)

    @model_validator(mode="after")
    def _makes_sense(self) -> "DistilConfig":
        if self.teacher is None and not self.teachers:
            raise ValueError(
                'there is no teacher: name one of all environments, such as teacher = "runs/big@best", or '
                'some by environment, such as teachers = { orders = "runs/orders@best" }'
            )
        if self.outcome is None and self.outcome_weight != 1:
            raise ValueError(
                f"outcome_weight ({self.outcome_weight:g}) is of the rewards' advantage, and there is none: "
                'set outcome, such as "grpo"'
            )
        return self
