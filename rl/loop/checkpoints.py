"""The checkpoints of a run: begun after the steps where one is due, written while training goes on."""

import time
from collections.abc import Awaitable, Callable

from rl.loop.learner_client import LearnerClient
from rl.loop.watch import Activity
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from trainer.checkpoint_folder import CheckpointError


class Checkpoints:
    """Writes the checkpoints of one run, one at a time."""

    def __init__(
        self,
        learner: LearnerClient,
        activity: Activity,
        folder: RunFolder,
        progress: Progress,
        *,
        every: int,
        steps: int,
        first: int,
    ) -> None:
        """every: steps between two, 0 for the last step alone. first: the step that the run starts with, of
        which there is one."""
        self.learner = learner
        self.activity = activity
        self.folder = folder
        self.progress = progress
        self.every = every
        self.steps = steps
        self.step = first  # of the last one begun
        self.writing = False

    async def begin(self, step: int, position: Callable[[], str], *, stopping: bool) -> None:
        """Begin one after this step where it is due, when the one before it has been written.

        position: where the run stands beside the learner. stopping: this is the last step for now.
        """
        due = step == self.steps or stopping or (self.every and step % self.every == 0)
        if not due or step == self.step:
            return
        await self.written(stopping=stopping)
        start = time.time()
        self.step, self.writing = step, True
        target = self.folder.path / "checkpoints" / f"step_{step}"
        await self._wait(self.learner.save(step, str(target.resolve()), position()), stopping)
        self.folder.event("learner", f"checkpoint {step}", start, time.time())

    async def written(self, *, stopping: bool = False) -> None:
        """Wait for the one in progress, if there is one. Raises CheckpointError where the last one fails."""
        if self.writing:
            await self._wait(self.learner.saved(self.step), stopping)

    async def _wait(self, act: Awaitable[None], stopping: bool) -> None:
        """Wait for `act`. A checkpoint that fails is told, and the run goes on unless it is the last one."""
        try:
            with self.activity.busy(f"writes checkpoint {self.step}"):
                await act
        except CheckpointError as error:
            if self.step == self.steps:
                raise
            self.progress.note(str(error) if stopping else f"{error}; the run goes on without it")
