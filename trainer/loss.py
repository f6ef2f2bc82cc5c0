"""Objectives: functions from per-token log-probs to a loss, one screen each.

A new objective is one function here, a name in `trainer.config.LossName` and a line in LOSSES. Every
tensor has shape (N,), one entry per policy token of a micro-batch. Denominators count the whole batch,
so a loss is a plain sum and adds up over micro-batches.

Left out on purpose: the KL term (LongCat-Flash-Thinking, section 3.2.1: its estimator is biased).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import LossConfig, LossName


@dataclass(frozen=True)
class LossInputs:
    """learner_logprobs: with gradient. behaviour_logprobs: the learner's, under the weights that wrote
    the token. rollout_logprobs: the engine's. sample_tokens: policy tokens of the token's sample.
    num_samples: samples of the whole batch."""

    learner_logprobs_N: Tensor
    behaviour_logprobs_N: Tensor
    rollout_logprobs_N: Tensor
    advantages_N: Tensor
    sample_tokens_N: Tensor
    num_samples: int


Loss = Callable[[LossInputs, LossConfig], tuple[Tensor, dict[str, Tensor]]]


def longcat(x: LossInputs, c: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Token-level loss, constant denominator, triplet clipping, truncated importance sampling.

    LongCat-Flash-Thinking (arXiv 2509.18883), equation 4. Read literally its outer max would end the
    gradient of every token with positive advantage, so the cap clip_neg_high holds where A < 0 only
    (dual clip, arXiv 1912.09729), as the text around the equation says.
    """
    ratio = torch.exp(x.learner_logprobs_N - x.behaviour_logprobs_N)
    clipped = ratio.clamp(1 - c.clip_neg_low, 1 + c.clip_pos_high)
    objective = torch.minimum(ratio * x.advantages_N, clipped * x.advantages_N)
    capped = torch.maximum(objective, c.clip_neg_high * x.advantages_N)
    objective = torch.where(x.advantages_N < 0, capped, objective)
    engine_gap = torch.exp(x.behaviour_logprobs_N - x.rollout_logprobs_N).clamp(max=c.tis_cap)
    loss = -(engine_gap * objective).sum() / (x.num_samples * c.max_completion_tokens)
    counts = _clip_metrics(ratio, x.advantages_N, c)
    counts["loss/clipped_neg"] += ((ratio > c.clip_neg_high) & (x.advantages_N < 0)).sum()
    return loss, counts | {"loss/tis_capped": (engine_gap >= c.tis_cap).float().sum()}


def grpo(x: LossInputs, c: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped objective, each sequence's tokens averaged (GRPO, arXiv 2402.03300, equation 3, no KL)."""
    ratio = torch.exp(x.learner_logprobs_N - x.behaviour_logprobs_N)
    clipped = ratio.clamp(1 - c.clip_neg_low, 1 + c.clip_pos_high)
    objective = torch.minimum(ratio * x.advantages_N, clipped * x.advantages_N)
    loss = -(objective / x.sample_tokens_N).sum() / x.num_samples
    return loss, _clip_metrics(ratio, x.advantages_N, c)


def _clip_metrics(ratio: Tensor, advantages: Tensor, c: LossConfig) -> dict[str, Tensor]:
    """Counts of tokens whose gradient the clipping ended, by the sign of the advantage."""
    high = (ratio > 1 + c.clip_pos_high) & (advantages > 0)
    low = (ratio < 1 - c.clip_neg_low) & (advantages < 0)
    return {"loss/clipped_pos": high.float().sum(), "loss/clipped_neg": low.float().sum()}


LOSSES: dict[LossName, Loss] = {"longcat": longcat, "grpo": grpo}
