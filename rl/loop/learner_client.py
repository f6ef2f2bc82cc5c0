"""The run's calls of the learner, each under a deadline, with one sentence for whatever goes wrong."""

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, cast

from ray import ObjectRef
from ray.exceptions import RayActorError, RayError

from rl.actors.actor_method import Handle
from rl.actors.learner import LearnerActor
from rl.actors.learner_ranks import LearnerRanks
from rl.loop.run_error import RunError
from rl.nodes.deadline import within
from rl.nodes.process import cause, first_line
from trainer.checkpoint_folder import CheckpointError
from trainer.sample import TrainSample
from trainer.step_result import StepResult

T = TypeVar("T")


class Nodes(Protocol):
    """The nodes of the run, of which one may be gone."""

    async def explain(self, error: RayError) -> None:
        """Raise the sentence for a node that is gone, where `error` comes from that."""
        ...


class LearnerClient:
    """Asks the learner. Every call raises RunError after `seconds`, and where the learner has died."""

    def __init__(
        self,
        learner: Handle[LearnerActor] | LearnerRanks,
        nodes: Nodes,
        seconds: float,
        logs: Path,
    ) -> None:
        """learner: the actor's handle. logs: the folder that the error names."""
        self.learner = learner
        self.nodes = nodes
        self.seconds = seconds
        self.logs = logs

    async def lost(self, samples: Sequence[object]) -> list[int]:
        """Fetch groups of samples, given as references. Returns the indices of those that are gone."""
        return await self._bounded(self.learner.lost.remote(_references(samples)), "the next batch")

    async def step(self, step: int, samples: Sequence[object]) -> StepResult:
        """Make one update on groups of samples, given as references."""
        return await self._bounded(
            self.learner.step.remote(_references(samples)), f"learner step {step}"
        )

    async def record(self, step: int) -> list[tuple[str, int]]:
        """Have the tokens of the oldest unwritten step written. Returns ids and byte offsets."""
        return await self._bounded(self.learner.record.remote(), f"the record of step {step}")

    async def save(self, step: int, folder: str, position: str) -> None:
        """Begin to write a checkpoint. Raises CheckpointError."""
        await self._bounded(
            self.learner.save.remote(folder, position), f"checkpoint of step {step}"
        )

    async def saved(self, step: int) -> None:
        """Wait for the checkpoint that was begun. Raises CheckpointError."""
        await self._bounded(self.learner.saved.remote(), f"checkpoint of step {step}")

    async def _bounded(self, act: Awaitable[T], what: str) -> T:
        try:
            return await within(act, self.seconds)
        except TimeoutError:
            raise RunError(f"{what}: no end within {self.seconds:g} s") from None
        except CheckpointError as error:
            raise cause(error) from None
        except RayError as error:
            await self.nodes.explain(error)
            how = "the learner died" if isinstance(error, RayActorError) else first_line(error)
            raise RunError(f"{what}: {how} (see {self.logs})") from None


def _references(samples: Sequence[object]) -> Sequence[ObjectRef[list[TrainSample]]]:
    """The queue knows no Ray, and holds references as objects."""
    return cast(Sequence[ObjectRef[list[TrainSample]]], samples)
