"""Supervised training on whole conversations: of chats, and of demonstrations before any reward.

In: samples whose loss mask marks the policy's own tokens. Out: a learner that has imitated them. Where a
folder for it is named, checkpoints are written there as it goes on, and an interrupted training goes on from
the last of them with the losses of one that was not interrupted. The processes of several ranks:
`trainer.sft_ranks`.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint_folder import latest, prune
from trainer.config import LearnerConfig, LossConfig, SftConfig
from trainer.learner import Learner
from trainer.parallel import ALONE, Ranks
from trainer.sample import TrainSample

Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Keeping:
    """Where an interrupted training goes on from: the checkpoints step_N in `folder`.

    every, minutes: updates and minutes between two of them, 0 for never. stop: true once the training has to
    stop. say: hears of a broken checkpoint.
    """

    folder: Path
    every: int
    minutes: float
    stop: Callable[[], bool] = lambda: False
    say: Callable[[str], object] = print


class SftStopped(Exception):
    """The training was asked to stop; `step` updates are done, and in a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after update {step}")
        self.step = step


def batches(
    demonstrations: Sequence[TrainSample], batch_size: int, seed: int, skip: int = 0
) -> Iterator[list[TrainSample]]:
    """Yield batches without end: every sample once in each pass, in an order of the pass's own.

    skip: how many of the first batches are left out.
    """
    order = random.Random(seed)
    waiting: list[int] = []
    for number in itertools.count():
        while len(waiting) < batch_size:
            waiting += order.sample(range(len(demonstrations)), len(demonstrations))
        if number >= skip:
            yield [demonstrations[i] for i in waiting[:batch_size]]
        waiting = waiting[batch_size:]


def train_sft(
    checkpoint: str | Path,
    demonstrations: Sequence[TrainSample],
    sft: SftConfig,
    learner_config: LearnerConfig,
    *,
    seed: int,
    report: Report,
    ranks: Ranks = ALONE,
    keeping: Keeping | None = None,
) -> Learner:
    """Imitate the demonstrations for `sft.updates` of them; `report(step, loss)` is called after each.

    All weights are trained, also where adapters are to be trained on the result. Returns the learner,
    whose `save` writes the result. Raises SftStopped where `keeping` says so, and CheckpointError.
    """
    # Without a critic, which nothing here trains.
    changes = {"optim": sft.optim, "lora": None, "loss": LossConfig()}
    config = learner_config.model_copy(update=changes)
    learner = Learner(checkpoint, config, temperature=1.0, keep_versions=0, ranks=ranks)
    keeper = _Keeper(learner, keeping) if keeping else None
    done = keeper.go_on() if keeper else 0
    turns = batches(demonstrations, sft.batch_size, seed, skip=done)
    steps = sft.updates(len(demonstrations))
    for step in range(done, steps):
        report(step, learner.sft_step(next(turns))["sft/loss"])
        if keeper and step + 1 < steps:
            keeper.keep(step + 1)
    learner.wait_saved()
    return learner


class _Keeper:
    """Writes the checkpoints of one training; every rank has one."""

    def __init__(self, learner: Learner, keeping: Keeping) -> None:
        self.learner, self.keeping = learner, keeping
        self.since = time.monotonic()

    def go_on(self) -> int:
        """Load the last whole checkpoint, if there is one; return how many updates it has behind it."""
        folder, first = self.keeping.folder, not self.learner.ranks.rank
        folder.mkdir(parents=True, exist_ok=True)
        found = latest(folder, self.keeping.say if first else lambda text: None)
        if found is None:
            return 0
        self.learner.load_state(found)
        return int(found.name.removeprefix("step_"))

    def keep(self, done: int) -> None:
        """Begin a checkpoint after so many updates, where one is due. Raises SftStopped."""
        keeping, ranks = self.keeping, self.learner.ranks
        late = 0 < 60 * keeping.minutes <= time.monotonic() - self.since
        # Rank 0's clock and rank 0's signal count: all ranks have to do the same.
        mine = {"late": float(late), "stop": float(keeping.stop())}
        found = ranks.total(dict.fromkeys(mine, 0.0) if ranks.rank else mine)
        if found["late"] or found["stop"] or (keeping.every and not done % keeping.every):
            self.learner.save_state(keeping.folder / f"step_{done}")
            self.since = time.monotonic()
        if found["stop"]:
            self.learner.wait_saved()
        if not ranks.rank:
            prune(keeping.folder, 1)
        if found["stop"]:
            raise SftStopped(done)
