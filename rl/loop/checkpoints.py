"""The checkpoints of a run: begun after the steps where one is due, written while training goes on."""

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from rl.config import RunConfig
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from trainer.checkpoint_folder import CheckpointError

Busy = Callable[[str], AbstractContextManager[None]]


class Bounded(Protocol):
    """Waits so many seconds; names `what` in the error that ends the run."""

    async def __call__(self, act: Awaitable[Any], seconds: float, what: str) -> Any: ...


class Checkpoints:
    """Of one run. One at a time is being written."""

    def __init__(
        self,
        config: RunConfig,
        learner: Any,
        folder: RunFolder,
        progress: Progress,
        busy: Busy,
        bounded: Bounded,
        first: int,
    ) -> None:
        """first: the step that the run starts with, of which there is one."""
        self.config = config
        self.learner = learner
        self.folder = folder
        self.progress = progress
        self.busy = busy
        self.bounded = bounded
        self.step = first  # of the last one begun
        self.writing = False

    async def begin(self, step: int, position: Callable[[], str], *, stopping: bool) -> None:
        """Begin one after this step where it is due, when the one before it has been written.

        position: where the run stands beside the learner. stopping: this is the last step for now.
        """
        every = self.config.checkpoint_every
        due = step == self.config.steps or stopping or (every and step % every == 0)
        if not due or step == self.step:
            return
        await self.written(stopping=stopping)
        start = time.time()
        self.step, self.writing = step, True
        target = self.folder.path / "checkpoints" / f"step_{step}"
        await self._wait(self.learner.save.remote(str(target.resolve()), position()), stopping)
        self.folder.event("learner", f"checkpoint {step}", start, time.time())

    async def written(self, *, stopping: bool = False) -> None:
        """Wait for the one in progress, if there is one. Raises CheckpointError where the last one fails."""
        if self.writing:
            await self._wait(self.learner.saved.remote(), stopping)

    async def _wait(self, act: Awaitable[None], stopping: bool) -> None:
        """One that fails is told and the run goes on; without the last one it has failed."""
        step, seconds = self.step, self.config.timeouts.step_seconds
        try:
            with self.busy(f"writes checkpoint {step}"):
                await self.bounded(act, seconds, f"checkpoint of step {step}")
        except CheckpointError as error:
            if step == self.config.steps:
                raise
            self.progress.note(str(error) if stopping else f"{error}; the run goes on without it")
