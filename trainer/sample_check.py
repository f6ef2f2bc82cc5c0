"""Refuses a batch that cannot be trained on, before it reaches the model.

Takes the samples of one learner step. Says in one sentence which sample is wrong, and how.
"""

import logging
import math
from collections.abc import Sequence

from trainer.sample import TrainSample

# Updates in a row that may be set aside; one more ends the run.
MOST_SET_ASIDE = 5
_log = logging.getLogger(__name__)


class BadSample(ValueError):
    """A batch that cannot be trained on; the message is one sentence that names the sample."""


class NotFinite(FloatingPointError):
    """Too many updates in a row were set aside; the message is one sentence with the cause of the last."""


def check_samples(samples: Sequence[TrainSample], max_tokens: int) -> None:
    """Raise BadSample for an empty batch, a sample of more than `max_tokens`, a reward, an advantage or an
    engine's log-prob that is not finite, and a teacher's that is no number."""
    if not any(s.num_policy_tokens for s in samples):
        what = "holds no sample" if not samples else "holds no token that the policy wrote"
        raise BadSample(f"the batch {what}: there is nothing to train on")
    for s in samples:
        if len(s.token_ids) > max_tokens:
            raise BadSample(
                f"sample {s.id} ({s.env}): its {len(s.token_ids)} tokens are more than the {max_tokens} "
                "of learner.micro_batch_tokens"
            )
        if fault := not_finite(s):
            raise BadSample(fault)


def not_finite(s: TrainSample) -> str:
    """The sentence on the first number of a sample that is not finite; "" where all are."""
    for reward in (s.reward, *s.turn_rewards):
        if not math.isfinite(reward):
            return f"sample {s.id} ({s.env}): its reward is {reward}; it has to be finite"
    for logprob in s.teacher_logprobs:
        if math.isnan(logprob):
            return f"sample {s.id} ({s.env}): its teacher's log-prob of a token is nan"
    rows = zip(s.rollout_logprobs, s.advantages, s.loss_mask, strict=True)
    for t, (logprob, advantage, wrote) in enumerate(rows):
        if wrote and not math.isfinite(logprob):
            return (
                f"sample {s.id} ({s.env}): the engine's log-prob of token {t} is {logprob}; it has to "
                "be finite"
            )
        if wrote and not math.isfinite(advantage):
            return (
                f"sample {s.id} ({s.env}): the advantage of token {t} is {advantage}; it has to be "
                "finite"
            )
    return ""


class SetAside:
    """Sets samples aside whose numbers are not finite, and ends a run that meets little else."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def samples(self, batch: Sequence[TrainSample]) -> tuple[list[TrainSample], str]:
        """The samples whose numbers are finite, and the sentence on the first other one, "" for none."""
        faults = [not_finite(s) for s in batch]
        for fault in filter(None, faults):
            _log.warning("%s; the sample is set aside", fault)
        kept = [s for s, fault in zip(batch, faults, strict=True) if not fault]
        return kept, next(filter(None, faults), "")

    def update(self, fault: str, partly: Sequence[str] = ()) -> None:
        """Count an update that was set aside, or whose samples mostly were; `fault` is the sentence on it,
        "" for a good one. partly: sentences on some of a batch's updates, of which others were made. Raises
        NotFinite after more than MOST_SET_ASIDE in a row."""
        for one in partly:
            _log.warning("%s; the batch's other updates are made", one)
        if not fault:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        _log.warning("%s (%s in a row)", fault, self.in_a_row)
        if self.in_a_row > MOST_SET_ASIDE:
            raise NotFinite(
                f"{fault}; {self.in_a_row} updates in a row met such numbers, so training cannot go on: look "
                "at what made them, or go on from an earlier checkpoint with a lower learner.optim.lr"
            )
