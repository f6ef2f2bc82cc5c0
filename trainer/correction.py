"""Corrections of the gap between learner and engine: a weight per token that any loss multiplies in.

The engine samples with its own kernels, so the learner's log-probs under the same weights differ from
those it reported: `ratio` is learner over engine, both of the version that wrote the token. A weight
has no gradient. Tokens with weight 0 still count in the loss's denominator.

A new correction is a function here, its settings, and an entry in CORRECTIONS. torch is imported for types
alone: the settings (`trainer.config`) read CORRECTIONS and stay light.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveFloat, model_validator

from trainer.own_function import BadFunction, call_own, is_own, split_counts
from trainer.section import Section

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.loss_inputs import LossInputs

# Weights (N,) and counts of tokens for the metrics.
Weighed = tuple["Tensor", dict[str, "Tensor"]]


@dataclass(frozen=True)
class Correction:
    """One correction. `function(inputs, settings)`, the last of the class `settings`."""

    function: Callable[["LossInputs", Any], Weighed]
    settings: type[Section]


class TisConfig(Section):
    """cap: the weight's upper bound C; inf takes it away."""

    cap: PositiveFloat = Field(default=2.0, allow_inf_nan=True)


class BoundsConfig(Section):
    """low, high: bounds of a weight, in order."""

    section: ClassVar[str]
    low: PositiveFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _in_order(self) -> "BoundsConfig":
        if self.low >= self.high:
            name = self.section
            raise ValueError(
                f"{name}.low ({self.low:g}) has to be below {name}.high ({self.high:g})"
            )
        return self


class IcepopConfig(BoundsConfig):
    """low, high: a token whose weight is outside is left out."""

    section = "icepop"
    low: PositiveFloat = 0.5
    high: PositiveFloat = 5.0


class GeometricRejectionConfig(BoundsConfig):
    """low, high: a sample whose weight, the geometric mean of its tokens', is outside is left out."""

    section = "geometric_rejection"
    low: PositiveFloat = 0.99
    high: PositiveFloat = 1.01


class SequenceTisConfig(Section):
    """cap: upper bound of the sample's ratio, the product of its tokens'; inf takes it away."""

    cap: PositiveFloat = Field(default=2.0, allow_inf_nan=True)


class GeometricTisConfig(BoundsConfig):
    """low, high: a sample whose ratios' geometric mean is outside is left out. cap: of the others'
    weights."""

    section = "geometric_tis"
    low: PositiveFloat = 0.99
    high: PositiveFloat = 1.01
    cap: PositiveFloat = Field(default=2.0, allow_inf_nan=True)


class MisConfig(Section):
    """cap: a sample whose ratio, the product of its tokens', is above is left out."""

    cap: PositiveFloat = 2.0

    @model_validator(mode="before")
    @classmethod
    def _had_bounds(cls, given: Any) -> Any:
        if isinstance(given, dict) and not {"low", "high"}.isdisjoint(given):
            raise ValueError(
                "low and high bound a geometric mean: that is the correction 'geometric_rejection', and mis "
                "has a cap"
            )
        return given


def none(x: "LossInputs", c: Section) -> Weighed:
    """Every token weighs 1."""
    return x.rollout_logprobs_N.new_ones(len(x.rollout_logprobs_N)), {}


def tis(x: "LossInputs", c: TisConfig) -> Weighed:
    """min(ratio, C): truncated importance sampling (Yao et al. 2025; LongCat-Flash-Thinking, arXiv
    2509.18883, equation 4)."""
    weights_N = (x.behaviour_logprobs_N - x.rollout_logprobs_N).exp().clamp(max=c.cap)
    return weights_N, {"loss/tis_capped": (weights_N >= c.cap).float().sum()}


def icepop(x: "LossInputs", c: IcepopConfig) -> Weighed:
    """The ratio where it is within [low, high], else 0: IcePop (Ring-1T, arXiv 2510.18855)."""
    ratio_N = (x.behaviour_logprobs_N - x.rollout_logprobs_N).exp()
    kept_N = (ratio_N >= c.low) & (ratio_N <= c.high)
    weights_N = ratio_N.where(kept_N, 0.0)
    return weights_N, {"loss/icepop_masked": (~kept_N).float().sum()}


def geometric_rejection(x: "LossInputs", c: GeometricRejectionConfig) -> Weighed:
    """The geometric mean of the sample's ratios where it is within [low, high], else 0, for all its tokens.

    Rejection by the mean, as GSPO has its ratio (arXiv 2507.18071, equation 7): the bounds mean the same at
    every length. It is no importance weight of the sequence; `mis` is.
    """
    ratio_N = x.sample_mean(x.behaviour_logprobs_N - x.rollout_logprobs_N).exp()
    kept_N = (ratio_N >= c.low) & (ratio_N <= c.high)
    weights_N = ratio_N.where(kept_N, 0.0)
    return weights_N, {"loss/geometric_rejection_masked": (~kept_N).float().sum()}


def sequence_tis(x: "LossInputs", c: SequenceTisConfig) -> Weighed:
    """min(the product of the sample's ratios, C) for all its tokens: truncated importance sampling of whole
    sequences (Liu, Li et al. 2025, as `mis`)."""
    weights_N = _product(x).clamp(max=c.cap)
    return weights_N, {"loss/sequence_tis_capped": (weights_N >= c.cap).float().sum()}


def geometric_tis(x: "LossInputs", c: GeometricTisConfig) -> Weighed:
    """min(ratio, C) in samples whose geometric mean of ratios is within [low, high], else 0: rejection of
    whole samples at any length, and the token's own weight in the rest."""
    gap_N = x.behaviour_logprobs_N - x.rollout_logprobs_N
    mean_N = x.sample_mean(gap_N).exp()
    kept_N = (mean_N >= c.low) & (mean_N <= c.high)
    weights_N = gap_N.exp().clamp(max=c.cap).where(kept_N, 0.0)
    return weights_N, {"loss/geometric_tis_masked": (~kept_N).float().sum()}


def mis(x: "LossInputs", c: MisConfig) -> Weighed:
    """The sample's importance ratio, the product of its tokens', where it is at most C, else 0, for all its
    tokens: sequence-level masked importance sampling (Liu, Li et al., "When Speed Kills Stability:
    Demystifying RL Collapse from the Training-Inference Mismatch", 2025)."""
    ratio_N = _product(x)
    kept_N = ratio_N <= c.cap
    weights_N = ratio_N.where(kept_N, 0.0)
    return weights_N, {"loss/mis_masked": (~kept_N).float().sum()}


def _product(x: "LossInputs") -> "Tensor":
    """(N,): the product of the ratios of the token's sample."""
    return x.sample_sum(x.behaviour_logprobs_N - x.rollout_logprobs_N).exp()


CORRECTIONS: dict[str, Correction] = {
    "none": Correction(none, Section),
    "tis": Correction(tis, TisConfig),
    "icepop": Correction(icepop, IcepopConfig),
    "mis": Correction(mis, MisConfig),
    "geometric_rejection": Correction(geometric_rejection, GeometricRejectionConfig),
    "sequence_tis": Correction(sequence_tis, SequenceTisConfig),
    "geometric_tis": Correction(geometric_tis, GeometricTisConfig),
}


def correction_of(name: str) -> Correction:
    """The built-in correction called so, or the user's own at `module:function`."""
    if not is_own(name):
        return CORRECTIONS[name]

    def own(x: "LossInputs", c: Section) -> Weighed:
        if not len(x.rollout_logprobs_N):  # a rank without work computes in step
            return none(x, c)
        weights_N, counts = split_counts(name, call_own(name, x))
        if weights_N.shape != x.rollout_logprobs_N.shape:
            raise BadFunction(
                f"{name!r} returned weights of shape {tuple(weights_N.shape)} for "
                f"{len(x.rollout_logprobs_N)} tokens"
            )
        return weights_N, counts

    return Correction(own, Section)
