"""Refuses a batch that cannot be trained on, before it reaches the model.

Takes the samples of one learner step. Says in one sentence which sample is wrong, and how.
"""

import math
from collections.abc import Sequence

from trainer.sample import TrainSample


class BadSample(ValueError):
    """A batch that cannot be trained on; the message is one sentence that names the sample."""


def check_samples(samples: Sequence[TrainSample], max_tokens: int) -> None:
    """Raise BadSample for an empty batch, a sample of more than `max_tokens`, a reward or an engine's
    log-prob that is not finite."""
    if not any(s.num_policy_tokens for s in samples):
        what = "holds no sample" if not samples else "holds no token that the policy wrote"
        raise BadSample(f"the batch {what}: there is nothing to train on")
    for s in samples:
        if len(s.token_ids) > max_tokens:
            raise BadSample(
                f"sample {s.id} ({s.env}): its {len(s.token_ids)} tokens are more than the {max_tokens} "
                "of learner.micro_batch_tokens"
            )
        if not math.isfinite(s.reward):
            raise BadSample(
                f"sample {s.id} ({s.env}): its reward is {s.reward}; it has to be finite"
            )
        for t, (logprob, wrote) in enumerate(zip(s.rollout_logprobs, s.loss_mask, strict=True)):
            if wrote and not math.isfinite(logprob):
                raise BadSample(
                    f"sample {s.id} ({s.env}): the engine's log-prob of token {t} is {logprob}; it has to "
                    "be finite"
                )
