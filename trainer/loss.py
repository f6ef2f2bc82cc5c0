"""Objectives: functions from per-token log-probs to a loss, one screen each.

A new objective is a function here, its settings, and an entry in LOSSES that also says its usual advantage;
`objective` is what the learner calls. Shapes: see `trainer.loss_inputs`. `w_N` is the weight that
`trainer.correction` gives each token. Denominators count the whole batch, so a loss is a plain sum and
adds up over micro-batches.

torch is imported for types alone: the settings (`trainer.config`) read LOSSES and stay light.

A KL term is no part of a loss, also where a paper has one: `objective` adds it where `loss.kl` asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, PositiveFloat

from trainer.correction import correction_of
from trainer.kl import MAX_LOG_RATIO, kl_to_reference
from trainer.own_function import BadFunction, call_own, is_own, split_counts
from trainer.section import Section

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.config import LossConfig
    from trainer.loss_inputs import LossInputs

# The loss, and counts of tokens for the metrics.
Found = tuple["Tensor", dict[str, "Tensor"]]


def token_mean(x: "LossInputs", values_N: "Tensor") -> "Tensor":
    """1/sum_i |y_i| sum_i sum_t."""
    return values_N.sum() / x.num_tokens


def sample_mean(x: "LossInputs", values_N: "Tensor") -> "Tensor":
    """1/G sum_i 1/|y_i| sum_t."""
    return (values_N / x.sample_tokens_N).sum() / x.num_samples


def sample_sum(x: "LossInputs", values_N: "Tensor") -> "Tensor":
    """1/G sum_i sum_t."""
    return values_N.sum() / x.num_samples


def constant_mean(x: "LossInputs", values_N: "Tensor") -> "Tensor":
    """1/(G T_max) sum_i sum_t."""
    return values_N.sum() / (x.num_samples * x.max_completion_tokens)


@dataclass(frozen=True)
class Loss:
    """One objective. `function(inputs, weights, settings)`, the last of the class `settings`.

    advantage, correction: the ones used where the configuration names none. critic: trained with a value
    head, so its advantage is one of CRITIC_ADVANTAGES and its settings are `PpoConfig`'s. masks_gap: weighs
    the gap between learner and engine itself, so it takes no correction. constant_denominator: divides by
    T_max, `LossConfig.max_completion_tokens`. ratio: of present to behaviour policy; without one every sample
    is taken for one of the present policy. average: of a value per token, as the loss averages its own terms.
    """

    function: Callable[["LossInputs", "Tensor", Any], Found]
    settings: type[Section]
    advantage: str
    correction: str = "none"
    critic: bool = False
    masks_gap: bool = False
    constant_denominator: bool = False
    ratio: bool = True
    average: Callable[["LossInputs", "Tensor"], "Tensor"] = token_mean


class OwnSettings(Section):
    """Keyword arguments of a loss of the user's own, under the names that it has for them."""

    model_config = ConfigDict(extra="allow")


class ClipConfig(Section):
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]: PPO's epsilon on both sides."""

    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2


class DapoConfig(ClipConfig):
    """Clip-higher, arXiv 2503.14476, section 4.1."""

    clip_high: PositiveFloat = 0.28


class GspoConfig(ClipConfig):
    """Bounds of the sequence ratio, which is a geometric mean: arXiv 2507.18071, section 5.1."""

    clip_low: PositiveFloat = 3e-4
    clip_high: PositiveFloat = 4e-4


class CispoConfig(Section):
    """max_ratio: cap of the ratio that weighs a token. MiniMax-M1 (arXiv 2506.13585) states none; this one
    is of the range that ScaleRL (arXiv 2510.13786) found good."""

    max_ratio: PositiveFloat = 5.0


class DecoupledPpoConfig(ClipConfig):
    """PPO's epsilon, and max_weight: cap of the weight pi_prox / pi_behaviour of a token; inf takes it away.

    The paper states none; this one is of the range that its own implementation uses.
    """

    max_weight: PositiveFloat = Field(default=5.0, allow_inf_nan=True)


class PpoConfig(ClipConfig):
    """PPO's epsilon, the critic's loss and GAE's horizon.

    critic_lr: the value head's own learning rate, on the policy's schedule: a head that begins at 0 needs
    larger steps than a policy that has been trained. critic_warmup: updates in which the head alone is
    trained. value_centring: share of the returns' mean error by which the head's bias moves at each update,
    0 for none: whatever the rewards' size, the value finds their mean within some ten updates.
    value_clip: the value moves at most so far from the behaviour version's before its error stops
    counting. value_weight: the value loss's weight beside the policy's. gamma, lam: GAE's discount and
    lambda, per turn.
    """

    critic_lr: PositiveFloat = 1e-5
    critic_warmup: int = Field(default=0, ge=0)
    value_centring: float = Field(default=0.1, ge=0, le=1)
    value_clip: PositiveFloat = 0.2
    value_weight: PositiveFloat = 0.5
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)


class LongcatConfig(Section):
    """Triplet clipping. The report states no values; these are the usual ones.

    clip_neg_low, clip_pos_high: the ratio is clipped to [1 - clip_neg_low, 1 + clip_pos_high].
    clip_neg_high: cap of the ratio where the advantage is negative (dual clip), above 1.
    """

    clip_neg_low: PositiveFloat = 0.2
    clip_pos_high: PositiveFloat = 0.28
    clip_neg_high: float = Field(default=3.0, gt=1)


class HispoConfig(LongcatConfig):
    """Triplet clipping and two masks of the gap between learner and engine; no values are published.

    sequence_delta: a sample is left out where the geometric mean of its ratios is so far from 1.
    token_delta: a token is left out where its own ratio is so far from 1.
    """

    sequence_delta: PositiveFloat = 0.01
    token_delta: PositiveFloat = 0.5


def objective(x: "LossInputs", c: "LossConfig") -> Found:
    """The configured loss under the configured correction, with its KL to a reference and its entropy bonus,
    which are averaged as the loss's own terms are."""
    w_N, corrected = correction_of(c.correction).function(x, c.correction_settings)
    chosen = loss_of(c.kind)
    loss, counts = chosen.function(x, w_N, c.loss_settings)
    counts = counts | corrected
    if c.kl is not None:
        kl_N = kl_to_reference(x, c.kl)
        counts["loss/kl_reference"] = kl_N.detach().sum()
        if c.kl.place == "loss":
            loss = loss + c.kl.weight * chosen.average(x, kl_N)
    if c.entropy_weight:
        assert x.entropy_N is not None, "scored with its entropy"
        loss = loss - c.entropy_weight * chosen.average(x, x.entropy_N)
    return loss, counts


def loss_of(kind: str) -> Loss:
    """The built-in loss called so, or the user's own at `module:function`, whose settings are
    `OwnSettings`."""
    if not is_own(kind):
        return LOSSES[kind]

    def own(x: "LossInputs", w_N: "Tensor", c: OwnSettings) -> Found:
        if not len(w_N):  # a rank without work computes in step
            return x.learner_logprobs_N.sum(), {}
        loss, counts = split_counts(kind, call_own(kind, x, w_N, **c.model_dump()))
        if loss.ndim:
            raise BadFunction(f"{kind!r} returned a loss of shape {tuple(loss.shape)}, no scalar")
        # A constant, such as 0 where nothing is left of a micro-batch, has the gradient 0.
        return loss if loss.requires_grad else loss + 0 * x.learner_logprobs_N.sum(), counts

    return Loss(own, OwnSettings, "grpo")


def longcat(x: "LossInputs", w_N: "Tensor", c: LongcatConfig) -> Found:
    """Token-level loss, constant denominator, triplet clipping.

    LongCat-Flash-Thinking (arXiv 2509.18883), equation 4; its truncated importance sampling is the
    correction `tis`. Read literally its outer max would end the gradient of every token with positive
    advantage, so the cap clip_neg_high holds where A < 0 only (dual clip, arXiv 1912.09729), as the text
    around the equation says.
    """
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _triplet_clipped(ratio_N, x.advantages_N, c)
    loss = -(w_N * gain_N).sum() / (x.num_samples * x.max_completion_tokens)
    return loss, _triplet_counts(ratio_N, x.advantages_N, c)


def grpo(x: "LossInputs", w_N: "Tensor", c: ClipConfig) -> Found:
    """1/G sum_i 1/|y_i| sum_t min(r A, clip(r) A): each sequence's tokens are averaged (GRPO, arXiv
    2402.03300, equation 3)."""
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _clipped(ratio_N, x.advantages_N, c)
    loss = -(w_N * gain_N / x.sample_tokens_N).sum() / x.num_samples
    return loss, _clip_counts(ratio_N, x.advantages_N, c)


def dr_grpo(x: "LossInputs", w_N: "Tensor", c: ClipConfig) -> Found:
    """1/(G T_max) sum_i sum_t min(r A, clip(r) A): GRPO without its length bias, a constant in place of each
    sequence's length (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _clipped(ratio_N, x.advantages_N, c)
    loss = -(w_N * gain_N).sum() / (x.num_samples * x.max_completion_tokens)
    return loss, _clip_counts(ratio_N, x.advantages_N, c)


def dapo(x: "LossInputs", w_N: "Tensor", c: DapoConfig) -> Found:
    """1/sum_i |y_i| sum_i sum_t min(r A, clip(r) A), the upper bound the wider one: all tokens of the batch
    weigh alike (DAPO, arXiv 2503.14476, equation 8). Its dynamic sampling is `batch.filter_zero_variance`."""
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _clipped(ratio_N, x.advantages_N, c)
    return -(w_N * gain_N).sum() / x.num_tokens, _clip_counts(ratio_N, x.advantages_N, c)


def gspo(x: "LossInputs", w_N: "Tensor", c: GspoConfig) -> Found:
    """1/G sum_i min(s_i A, clip(s_i) A): one ratio per sequence, s = (pi(y) / pi_behaviour(y))^(1/|y|),
    clipped as a whole (GSPO, arXiv 2507.18071, equations 5 to 7).

    A sequence's term is written as the mean over its tokens, which all have the same ratio and advantage.
    """
    ratio_N = _ratio(x.sample_mean(x.learner_logprobs_N - x.behaviour_logprobs_N))
    gain_N = _clipped(ratio_N, x.advantages_N, c)
    loss = -(w_N * gain_N / x.sample_tokens_N).sum() / x.num_samples
    return loss, _clip_counts(ratio_N, x.advantages_N, c)


def cispo(x: "LossInputs", w_N: "Tensor", c: CispoConfig) -> Found:
    """1/sum_i |y_i| sum_i sum_t sg(min(r, max_ratio)) A log pi: clipping ends no token's gradient (CISPO,
    MiniMax-M1, arXiv 2506.13585, equations 4 and 5; no lower bound, as in its experiments)."""
    ratio_N = _ratio(x.learner_logprobs_N.detach(), x.behaviour_logprobs_N)
    gain_N = ratio_N.clamp(max=c.max_ratio) * x.advantages_N * x.learner_logprobs_N
    capped = (ratio_N > c.max_ratio).float().sum()
    return -(w_N * gain_N).sum() / x.num_tokens, {"loss/cispo_capped": capped}


def rloo(x: "LossInputs", w_N: "Tensor", c: Section) -> Found:
    """1/G sum_i A_i log pi(y_i): REINFORCE on whole sequences (RLOO, arXiv 2402.14740, section 3, with the
    advantage `rloo`). It has no ratio, so it takes every sample for one of the present policy."""
    gain_N = x.advantages_N * x.learner_logprobs_N
    return -(w_N * gain_N).sum() / x.num_samples, {}


def reinforce_pp(x: "LossInputs", w_N: "Tensor", c: ClipConfig) -> Found:
    """1/sum_i |y_i| sum_i sum_t min(r A, clip(r) A): PPO's surrogate without a critic (REINFORCE++, arXiv
    2501.03262, section 3, with the advantage `reinforce_pp`)."""
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _clipped(ratio_N, x.advantages_N, c)
    loss = -(w_N * gain_N).sum() / x.num_tokens
    return loss, _clip_counts(ratio_N, x.advantages_N, c)


def ppo(x: "LossInputs", w_N: "Tensor", c: PpoConfig) -> Found:
    """min(r A, clip(r) A) averaged over the batch's tokens, and (V - return)^2 averaged over its turns (PPO,
    arXiv 1707.06347, equations 7 and 9, no entropy bonus).

    The value is clipped around the behaviour version's, and the larger error counts, as in the paper's own
    implementation (arXiv 2005.12729, section 3).
    """
    assert x.critic is not None, "ppo is trained with a critic"
    v = x.critic
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    policy_loss = -(w_N * _clipped(ratio_N, x.advantages_N, c)).sum() / x.num_tokens
    bound = c.value_clip
    moved_N = v.behaviour_values_N + (v.values_N - v.behaviour_values_N).clamp(-bound, bound)
    error_N = ((v.values_N - v.returns_N) ** 2).maximum((moved_N - v.returns_N) ** 2)
    value_loss = (error_N * v.starts_N).sum() / v.num_turns
    counts = _clip_counts(ratio_N, x.advantages_N, c)
    # The learner divides by the batch's tokens; this one is a mean over its turns.
    counts["loss/value"] = value_loss.detach() * x.num_tokens
    return policy_loss + c.value_weight * value_loss, counts


def hispo(x: "LossInputs", w_N: "Tensor", c: HispoConfig) -> Found:
    """Triplet clipping of the ratio to the engine's log-probs, under two masks of the gap between learner
    and engine: of whole samples by its geometric mean, and of tokens (HisPO, LongCat-Flash-Prover, arXiv
    2603.21065, section 3.3).

    r = r_dis * r_stale, with r_dis = behaviour / engine and r_stale = learner / behaviour. The equation
    divides by the longest answer, the text by the constant maximum: the constant here.
    """
    gap_N = x.behaviour_logprobs_N - x.rollout_logprobs_N
    sample_near_N = (x.sample_mean(gap_N).exp() - 1).abs() < c.sequence_delta
    token_near_N = (gap_N.exp() - 1).abs() < c.token_delta
    kept_N = (sample_near_N & token_near_N).to(w_N.dtype)
    ratio_N = _ratio(x.learner_logprobs_N, x.rollout_logprobs_N)
    gain_N = _triplet_clipped(ratio_N, x.advantages_N, c)
    loss = -(w_N * kept_N * gain_N).sum() / (x.num_samples * x.max_completion_tokens)
    counts = _triplet_counts(ratio_N, x.advantages_N, c)
    return loss, counts | {"loss/hispo_masked": (1 - kept_N).sum()}


def decoupled_ppo(x: "LossInputs", w_N: "Tensor", c: DecoupledPpoConfig) -> Found:
    """min(pi_prox / pi_behaviour, max_weight) min(u A, clip(u) A) with u = pi / pi_prox: clipping is around
    the proximal policy, the learner's before the batch, however stale a sample is (AReaL, arXiv 2505.24298,
    equation 5).

    The equation's bare sum over tokens is averaged over the batch's tokens. Its weight has no bound there;
    without one a single stale token can outweigh the batch.
    """
    ratio_N = _ratio(x.learner_logprobs_N, x.proximal_logprobs_N)
    staleness_N = _ratio(x.proximal_logprobs_N, x.behaviour_logprobs_N)
    gain_N = staleness_N.clamp(max=c.max_weight) * _clipped(ratio_N, x.advantages_N, c)
    loss = -(w_N * gain_N).sum() / x.num_tokens
    capped = (staleness_N > c.max_weight).float().sum()
    return loss, _clip_counts(ratio_N, x.advantages_N, c) | {"loss/decoupled_capped": capped}


def _ratio(logprobs_N: "Tensor", base_N: "Tensor | float" = 0.0) -> "Tensor":
    """exp(logprobs - base), finite however far apart they are; where clipping ends a gradient it is 0, not
    NaN."""
    return (logprobs_N - base_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _clipped(ratio_N: "Tensor", advantages_N: "Tensor", c: ClipConfig) -> "Tensor":
    """min(r A, clip(r, 1 - low, 1 + high) A)."""
    bounded_N = ratio_N.clamp(1 - c.clip_low, 1 + c.clip_high)
    return (ratio_N * advantages_N).minimum(bounded_N * advantages_N)


def _triplet_clipped(ratio_N: "Tensor", advantages_N: "Tensor", c: LongcatConfig) -> "Tensor":
    """The clipped term, and where A < 0 no less than clip_neg_high A."""
    bounded_N = ratio_N.clamp(1 - c.clip_neg_low, 1 + c.clip_pos_high)
    gain_N = (ratio_N * advantages_N).minimum(bounded_N * advantages_N)
    capped_N = gain_N.maximum(c.clip_neg_high * advantages_N)
    return capped_N.where(advantages_N < 0, gain_N)


def _clip_counts(ratio_N: "Tensor", advantages_N: "Tensor", c: ClipConfig) -> dict[str, "Tensor"]:
    """Tokens whose gradient the clipping ended, by the sign of the advantage."""
    high = (ratio_N > 1 + c.clip_high) & (advantages_N > 0)
    low = (ratio_N < 1 - c.clip_low) & (advantages_N < 0)
    return {"loss/clipped_pos": high.float().sum(), "loss/clipped_neg": low.float().sum()}


def _triplet_counts(
    ratio_N: "Tensor", advantages_N: "Tensor", c: LongcatConfig
) -> dict[str, "Tensor"]:
    """Tokens whose gradient the clipping ended, by the sign of the advantage."""
    positive, negative = advantages_N > 0, advantages_N < 0
    far = (ratio_N < 1 - c.clip_neg_low) | (ratio_N > c.clip_neg_high)
    return {
        "loss/clipped_pos": ((ratio_N > 1 + c.clip_pos_high) & positive).float().sum(),
        "loss/clipped_neg": (far & negative).float().sum(),
    }


LOSSES: dict[str, Loss] = {
    "longcat": Loss(
        longcat,
        LongcatConfig,
        "grpo",
        correction="tis",
        constant_denominator=True,
        average=constant_mean,
    ),
    "grpo": Loss(grpo, ClipConfig, "grpo", average=sample_mean),
    "dr_grpo": Loss(
        dr_grpo, ClipConfig, "dr_grpo", constant_denominator=True, average=constant_mean
    ),
    "dapo": Loss(dapo, DapoConfig, "grpo"),
    "gspo": Loss(gspo, GspoConfig, "grpo", average=sample_mean),
    "cispo": Loss(cispo, CispoConfig, "grpo"),
    "rloo": Loss(rloo, Section, "rloo", ratio=False, average=sample_sum),
    "reinforce_pp": Loss(reinforce_pp, ClipConfig, "reinforce_pp"),
    "ppo": Loss(ppo, PpoConfig, "gae", critic=True),
    "hispo": Loss(
        hispo, HispoConfig, "grpo", masks_gap=True, constant_denominator=True, average=constant_mean
    ),
    "decoupled_ppo": Loss(decoupled_ppo, DecoupledPpoConfig, "reinforce_pp"),
}
