"""The checkpoints of a run: begun after the steps where one is due, written while training goes on."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rl.loop.learner_client import LearnerClient
from rl.loop.watch import Activity
from rl.record.best_checkpoint import BestCheckpoint
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from trainer.checkpoint_folder import CheckpointError, linked, remove


class Checkpoints:
    """Writes the checkpoints of one run, one at a time."""

    def __init__(
        self,
        learner: LearnerClient,
        activity: Activity,
        folder: RunFolder,
        progress: Progress,
        best: BestCheckpoint,
        *,
        every: int,
        minutes: float,
        steps: int,
        first: int,
    ) -> None:
        """every: steps between two, 0 for the last step alone. minutes: after which one is due though no step
        asks for it, 0 for never; it goes when a later one is there. first: the step that the run starts with,
        of which there is one."""
        self.learner = learner
        self.activity = activity
        self.folder = folder
        self.progress = progress
        self.best = best
        self.every = every
        self.seconds = 60 * minutes
        self.steps = steps
        self.step = first  # of the last one begun
        self.writing = False
        self._begun = time.monotonic()
        # The last one begun, and those that only the clock or an evaluation asked for.
        self._target = Path()
        self._passing: set[Path] = set()

    async def begin(
        self, step: int, position: Callable[[], str], *, stopping: bool, evaluated: bool = False
    ) -> None:
        """Begin one after this step where it is due, when the one before it has been written.

        position: where the run stands beside the learner. stopping: this is the last step for now. evaluated:
        one is due since the step's version is; unless that is the best it goes when a later one is there.
        """
        due = step == self.steps or stopping or (self.every and step % self.every == 0)
        late = bool(self.seconds) and time.monotonic() - self._begun >= self.seconds
        if not (due or late or evaluated) or step == self.step:
            return
        await self.written(stopping=stopping)
        start, self._begun = time.time(), time.monotonic()
        self.step, self.writing = step, True
        self._target = self.folder.path / "checkpoints" / f"step_{step}"
        if not due:
            self._passing.add(self._target)
        target = str(self._target.resolve())
        await self._wait(self.learner.save(step, target, position()), stopping)
        self.folder.event("learner", f"checkpoint {step}", start, time.time())

    async def written(self, *, stopping: bool = False) -> None:
        """Wait for the one in progress, if there is one. Raises CheckpointError where the last one fails."""
        if self.writing and await self._wait(self.learner.saved(self.step), stopping):
            self.best.choose()  # before what nothing points at goes
            await self.tidy()

    async def tidy(self) -> None:
        """Remove those that are of no use any more: a later one is there, and no link points at them."""
        kept = {self._target, *linked(self.folder.path / "checkpoints")}
        for earlier in self._passing - kept:
            await asyncio.to_thread(remove, earlier)
            self._passing.discard(earlier)

    async def _wait(self, act: Awaitable[None], stopping: bool) -> bool:
        """Wait for `act`. A checkpoint that fails is told, and the run goes on unless it is the last one.

        Returns False where it has failed.
        """
        try:
            with self.activity.busy(f"writes checkpoint {self.step}"):
                await act
        except CheckpointError as error:
            if self.step == self.steps:
                raise
            self.progress.note(str(error) if stopping else f"{error}; the run goes on without it")
            return False
        return True
