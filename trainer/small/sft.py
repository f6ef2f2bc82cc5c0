"""Cold start: supervised training on demonstrations, before any reward (LongCat-Flash-Thinking, section 2).

Demonstrations are `TrainSample`s whose loss mask marks the policy's own tokens.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.config import LearnerConfig, SftConfig
from trainer.learner import Learner
from trainer.sample import TrainSample


def train_sft(
    checkpoint: str | Path,
    demonstrations: Sequence[TrainSample],
    sft: SftConfig,
    learner_config: LearnerConfig,
    *,
    seed: int,
    report: Callable[[int, float], None],
) -> Learner:
    """Imitate the demonstrations for `sft.steps` updates; `report(step, loss)` is called after each.

    All weights are trained, also where adapters are to be trained on the result. Returns the learner,
    whose `save` writes the result.
    """
    config = learner_config.model_copy(update={"optim": sft.optim, "lora": None})
    learner = Learner(checkpoint, config, temperature=1.0, keep_versions=0)
    order = random.Random(seed)
    waiting: list[TrainSample] = []
    for step in range(sft.steps):
        while len(waiting) < sft.batch_size:
            waiting += order.sample(list(demonstrations), len(demonstrations))
        batch, waiting = waiting[: sft.batch_size], waiting[sft.batch_size :]
        report(step, learner.sft_step(batch)["sft/loss"])
    return learner
