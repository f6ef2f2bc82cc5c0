"""Measures the learner's step on what a run would play: seconds of an update, by its size and settings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rl.config import RunConfig
from trainer.learner import Learner
from trainer.sample import TrainSample
from trainer.weights import write_weights

# So small that no update changes a log-prob by what could be told from rounding.
NO_LEARNING = 1e-12


@dataclass(frozen=True)
class Steps:
    """Updates of one size. seconds: of one. tokens: of one. cpus: that it kept busy."""

    count: int
    seconds: float
    tokens: int
    cpus: float


class LearnerProbe:
    """One learner of a run, in this process; each of its steps is on samples of the version before."""

    def __init__(self, config: RunConfig, checkpoint: str) -> None:
        self.config = config
        self.checkpoint = checkpoint

    def load(self, threads: int) -> None:
        """Load the policy anew, for steps of so many threads."""
        optim = self.config.learner.optim.model_copy(update={"lr": NO_LEARNING})
        settings = self.config.learner.model_copy(update={"threads": threads, "optim": optim})
        self.settings = settings
        keep = 1 if settings.loss.behaviour != "engine" else 0
        temperature = self.config.sampling.temperature
        self.learner = Learner(
            self.checkpoint, settings, temperature=temperature, keep_versions=keep
        )

    def agreeing(self, samples: Sequence[TrainSample]) -> list[TrainSample]:
        """The samples with the learner's own log-probs as the engine's, as they are in float32."""
        found: list[TrainSample] = []
        for sample, own in zip(samples, self.learner.logprobs(samples), strict=True):
            left = iter(own)
            logprobs = tuple(next(left) if mask else 0.0 for mask in sample.loss_mask)
            found.append(replace(sample, rollout_logprobs=logprobs))
        return found

    def steps(
        self, samples: Sequence[TrainSample], micro_batch_tokens: int, count: int, seconds: float
    ) -> Steps:
        """`count` updates, or fewer where the next would begin after so many seconds; the fastest counts."""
        size = {"micro_batch_tokens": micro_batch_tokens}
        self.learner.config = self.settings.model_copy(update=size)
        taken: list[float] = []
        began, cpu = time.perf_counter(), time.process_time()
        while len(taken) < count and (not taken or time.perf_counter() - began < seconds):
            start, version = time.perf_counter(), self.learner.version
            of = max(0, version - 1)
            self.learner.step([_written_by(sample, of) for sample in samples])
            self.learner.snapshot(self.learner.dtype)
            taken.append(time.perf_counter() - start)
        wall = time.perf_counter() - began
        tokens = sum(len(sample.token_ids) for sample in samples)
        return Steps(len(taken), min(taken), tokens, (time.process_time() - cpu) / wall)

    def mean_seconds(
        self, samples: Sequence[TrainSample], micro_batch_tokens: int, seconds: float
    ) -> float:
        """Mean seconds of updates, begun for so many seconds."""
        began = time.perf_counter()
        steps = self.steps(samples, micro_batch_tokens, 2**31, seconds)
        return (time.perf_counter() - began) / steps.count

    def publish(self, path: Path) -> float:
        """Write the weights as engines take them. Returns seconds."""
        weights = self.learner.snapshot(self.learner.dtype)
        start = time.perf_counter()
        write_weights(weights, path)
        return time.perf_counter() - start


def _written_by(sample: TrainSample, version: int) -> TrainSample:
    versions = tuple(version if mask else -1 for mask in sample.loss_mask)
    return replace(sample, versions=versions)
