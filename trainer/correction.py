"""Corrections of the gap between learner and engine: a weight per token that any loss multiplies in.

The engine samples with its own kernels, so the learner's log-probs under the same weights differ from
those it reported: `ratio` is learner over engine, both of the version that wrote the token. A weight
has no gradient. Tokens with weight 0 still count in the loss's denominator.

Closed set: a name in `trainer.config.CorrectionName`, a function here, a line in CORRECTIONS.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.config import CorrectionName, LossConfig
from trainer.loss_inputs import LossInputs

# Weights (N,) and counts of tokens for the metrics.
Correction = Callable[[LossInputs, LossConfig], tuple[Tensor, dict[str, Tensor]]]


def none(x: LossInputs, c: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Every token weighs 1."""
    return torch.ones_like(x.rollout_logprobs_N), {}


def tis(x: LossInputs, c: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """min(ratio, C): truncated importance sampling (Yao et al. 2025; LongCat-Flash-Thinking, arXiv
    2509.18883, equation 4)."""
    weights_N = torch.exp(x.behaviour_logprobs_N - x.rollout_logprobs_N).clamp(max=c.tis.cap)
    return weights_N, {"loss/tis_capped": (weights_N >= c.tis.cap).float().sum()}


def icepop(x: LossInputs, c: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The ratio where it is within [low, high], else 0: IcePop (Ring-1T, arXiv 2510.18855)."""
    ratio_N = torch.exp(x.behaviour_logprobs_N - x.rollout_logprobs_N)
    kept_N = (ratio_N >= c.icepop.low) & (ratio_N <= c.icepop.high)
    weights_N = torch.where(kept_N, ratio_N, 0.0)
    return weights_N, {"loss/icepop_masked": (~kept_N).float().sum()}


def mis(x: LossInputs, c: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The sample's ratio for all its tokens where it is within [low, high], else 0: sequence-level masked
    importance sampling (Liu, Li et al., "When Speed Kills Stability: Demystifying RL Collapse from the
    Training-Inference Mismatch", 2025).

    The sample's ratio is the geometric mean of its tokens' (GSPO, arXiv 2507.18071, equation 7), so that
    the bounds mean the same at every length.
    """
    ratio_N = x.sample_mean(x.behaviour_logprobs_N - x.rollout_logprobs_N).exp()
    kept_N = (ratio_N >= c.mis.low) & (ratio_N <= c.mis.high)
    weights_N = torch.where(kept_N, ratio_N, 0.0)
    return weights_N, {"loss/mis_masked": (~kept_N).float().sum()}


CORRECTIONS: dict[CorrectionName, Correction] = {
    "none": none,
    "tis": tis,
    "icepop": icepop,
    "mis": mis,
}
