"""Objectives: functions from per-token log-probs to a loss, one screen each.

A new objective is one function here, a name in `trainer.config.LossName` with its settings, and a line in
LOSSES; `objective` is what the learner calls. Shapes: see `trainer.loss_inputs`. `w_N` is the weight that
`trainer.correction` gives each token. Denominators count the whole batch, so a loss is a plain sum and
adds up over micro-batches.

Left out on purpose: the KL term (LongCat-Flash-Thinking, section 3.2.1: its estimator is biased), also
where a paper has one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.config import ClipConfig, LongcatConfig, LossConfig, LossName
from trainer.correction import CORRECTIONS
from trainer.loss_inputs import LossInputs

# A ratio's logarithm is cut off here: exp stays finite, and where clipping ends a gradient it is 0, not NaN.
MAX_LOG_RATIO = 20.0

# The loss, and counts of tokens for the metrics.
Found = tuple[Tensor, dict[str, Tensor]]
Loss = Callable[[LossInputs, Tensor, LossConfig], Found]


def objective(x: LossInputs, c: LossConfig) -> Found:
    """The configured loss under the configured correction."""
    w_N, corrected = CORRECTIONS[c.correction](x, c)
    loss, counts = LOSSES[c.kind](x, w_N, c)
    return loss, counts | corrected


def longcat(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """Token-level loss, constant denominator, triplet clipping.

    LongCat-Flash-Thinking (arXiv 2509.18883), equation 4; its truncated importance sampling is the
    correction `tis`. Read literally its outer max would end the gradient of every token with positive
    advantage, so the cap clip_neg_high holds where A < 0 only (dual clip, arXiv 1912.09729), as the text
    around the equation says.
    """
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _triplet_clipped(ratio_N, x.advantages_N, c.longcat)
    loss = -(w_N * gain_N).sum() / (x.num_samples * c.max_completion_tokens)
    return loss, _triplet_counts(ratio_N, x.advantages_N, c.longcat)


def grpo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """1/G sum_i 1/|y_i| sum_t min(r A, clip(r) A): each sequence's tokens are averaged (GRPO, arXiv
    2402.03300, equation 3)."""
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _clipped(ratio_N, x.advantages_N, c.grpo)
    loss = -(w_N * gain_N / x.sample_tokens_N).sum() / x.num_samples
    return loss, _clip_counts(ratio_N, x.advantages_N, c.grpo)


def dr_grpo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """1/(G T_max) sum_i sum_t min(r A, clip(r) A): GRPO without its length bias, a constant in place of each
    sequence's length (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _clipped(ratio_N, x.advantages_N, c.dr_grpo)
    loss = -(w_N * gain_N).sum() / (x.num_samples * c.max_completion_tokens)
    return loss, _clip_counts(ratio_N, x.advantages_N, c.dr_grpo)


def dapo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """1/sum_i |y_i| sum_i sum_t min(r A, clip(r) A), the upper bound the wider one: all tokens of the batch
    weigh alike (DAPO, arXiv 2503.14476, equation 8). Its dynamic sampling is `batch.filter_zero_variance`."""
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _clipped(ratio_N, x.advantages_N, c.dapo)
    return -(w_N * gain_N).sum() / x.num_tokens, _clip_counts(ratio_N, x.advantages_N, c.dapo)


def gspo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """1/G sum_i min(s_i A, clip(s_i) A): one ratio per sequence, s = (pi(y) / pi_behaviour(y))^(1/|y|),
    clipped as a whole (GSPO, arXiv 2507.18071, equations 5 to 7).

    A sequence's term is written as the mean over its tokens, which all have the same ratio and advantage.
    """
    ratio_N = _ratio(x.sample_mean(x.learner_logprobs_N - x.behaviour_logprobs_N))
    gain_N = _clipped(ratio_N, x.advantages_N, c.gspo)
    loss = -(w_N * gain_N / x.sample_tokens_N).sum() / x.num_samples
    return loss, _clip_counts(ratio_N, x.advantages_N, c.gspo)


def cispo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """1/sum_i |y_i| sum_i sum_t sg(min(r, max_ratio)) A log pi: clipping ends no token's gradient (CISPO,
    MiniMax-M1, arXiv 2506.13585, equations 4 and 5; no lower bound, as in its experiments)."""
    ratio_N = _ratio(x.learner_logprobs_N.detach(), x.behaviour_logprobs_N)
    gain_N = ratio_N.clamp(max=c.cispo.max_ratio) * x.advantages_N * x.learner_logprobs_N
    capped = (ratio_N > c.cispo.max_ratio).float().sum()
    return -(w_N * gain_N).sum() / x.num_tokens, {"loss/cispo_capped": capped}


def rloo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """1/G sum_i A_i log pi(y_i): REINFORCE on whole sequences (RLOO, arXiv 2402.14740, section 3, with the
    advantage `rloo`). It has no ratio, so it takes every sample for one of the present policy."""
    gain_N = x.advantages_N * x.learner_logprobs_N
    return -(w_N * gain_N).sum() / x.num_samples, {}


def reinforce_pp(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """1/sum_i |y_i| sum_i sum_t min(r A, clip(r) A): PPO's surrogate without a critic (REINFORCE++, arXiv
    2501.03262, section 3, with the advantage `reinforce_pp`)."""
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    gain_N = _clipped(ratio_N, x.advantages_N, c.reinforce_pp)
    loss = -(w_N * gain_N).sum() / x.num_tokens
    return loss, _clip_counts(ratio_N, x.advantages_N, c.reinforce_pp)


def ppo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """min(r A, clip(r) A) averaged over the batch's tokens, and (V - return)^2 averaged over its turns (PPO,
    arXiv 1707.06347, equations 7 and 9, no entropy bonus).

    The value is clipped around the behaviour version's, and the larger error counts, as in the paper's own
    implementation (arXiv 2005.12729, section 3).
    """
    assert x.critic is not None, "ppo is trained with a critic"
    v = x.critic
    ratio_N = _ratio(x.learner_logprobs_N, x.behaviour_logprobs_N)
    policy_loss = -(w_N * _clipped(ratio_N, x.advantages_N, c.ppo)).sum() / x.num_tokens
    bound = c.ppo.value_clip
    moved_N = v.behaviour_values_N + (v.values_N - v.behaviour_values_N).clamp(-bound, bound)
    error_N = torch.maximum((v.values_N - v.returns_N) ** 2, (moved_N - v.returns_N) ** 2)
    value_loss = (error_N * v.starts_N).sum() / v.num_turns
    counts = _clip_counts(ratio_N, x.advantages_N, c.ppo)
    # The learner divides by the batch's tokens; this one is a mean over its turns.
    counts["loss/value"] = value_loss.detach() * x.num_tokens
    return policy_loss + c.ppo.value_weight * value_loss, counts


def hispo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """Triplet clipping of the ratio to the engine's log-probs, under two masks of the gap between learner
    and engine: of whole samples by its geometric mean, and of tokens (HisPO, LongCat-Flash-Prover, arXiv
    2603.21065, section 3.3).

    r = r_dis * r_stale, with r_dis = behaviour / engine and r_stale = learner / behaviour. The equation
    divides by the longest answer, the text by the constant maximum: the constant here.
    """
    gap_N = x.behaviour_logprobs_N - x.rollout_logprobs_N
    sample_near_N = (x.sample_mean(gap_N).exp() - 1).abs() < c.hispo.sequence_delta
    token_near_N = (gap_N.exp() - 1).abs() < c.hispo.token_delta
    kept_N = (sample_near_N & token_near_N).to(w_N.dtype)
    ratio_N = _ratio(x.learner_logprobs_N, x.rollout_logprobs_N)
    gain_N = _triplet_clipped(ratio_N, x.advantages_N, c.hispo)
    loss = -(w_N * kept_N * gain_N).sum() / (x.num_samples * c.max_completion_tokens)
    counts = _triplet_counts(ratio_N, x.advantages_N, c.hispo)
    return loss, counts | {"loss/hispo_masked": (1 - kept_N).sum()}


def decoupled_ppo(x: LossInputs, w_N: Tensor, c: LossConfig) -> Found:
    """(pi_prox / pi_behaviour) min(u A, clip(u) A) with u = pi / pi_prox: clipping is around the proximal
    policy, the learner's before the update, however stale a sample is (AReaL, arXiv 2505.24298, equation 5).

    The equation's bare sum over tokens is averaged over the batch's tokens.
    """
    ratio_N = _ratio(x.learner_logprobs_N, x.proximal_logprobs_N)
    staleness_N = _ratio(x.proximal_logprobs_N, x.behaviour_logprobs_N)
    gain_N = staleness_N * _clipped(ratio_N, x.advantages_N, c.decoupled_ppo)
    loss = -(w_N * gain_N).sum() / x.num_tokens
    return loss, _clip_counts(ratio_N, x.advantages_N, c.decoupled_ppo)


def _ratio(logprobs_N: Tensor, base_N: Tensor | float = 0.0) -> Tensor:
    """exp(logprobs - base), finite however far apart they are."""
    return (logprobs_N - base_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _clipped(ratio_N: Tensor, advantages_N: Tensor, c: ClipConfig) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A)."""
    bounded_N = ratio_N.clamp(1 - c.clip_low, 1 + c.clip_high)
    return torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)


def _triplet_clipped(ratio_N: Tensor, advantages_N: Tensor, c: LongcatConfig) -> Tensor:
    """The clipped term, and where A < 0 no less than clip_neg_high A."""
    bounded_N = ratio_N.clamp(1 - c.clip_neg_low, 1 + c.clip_pos_high)
    gain_N = torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)
    capped_N = torch.maximum(gain_N, c.clip_neg_high * advantages_N)
    return torch.where(advantages_N < 0, capped_N, gain_N)


def _clip_counts(ratio_N: Tensor, advantages_N: Tensor, c: ClipConfig) -> dict[str, Tensor]:
    """Tokens whose gradient the clipping ended, by the sign of the advantage."""
    high = (ratio_N > 1 + c.clip_high) & (advantages_N > 0)
    low = (ratio_N < 1 - c.clip_low) & (advantages_N < 0)
    return {"loss/clipped_pos": high.float().sum(), "loss/clipped_neg": low.float().sum()}


def _triplet_counts(ratio_N: Tensor, advantages_N: Tensor, c: LongcatConfig) -> dict[str, Tensor]:
    """Tokens whose gradient the clipping ended, by the sign of the advantage."""
    positive, negative = advantages_N > 0, advantages_N < 0
    far = (ratio_N < 1 - c.clip_neg_low) | (ratio_N > c.clip_neg_high)
    return {
        "loss/clipped_pos": ((ratio_N > 1 + c.clip_pos_high) & positive).float().sum(),
        "loss/clipped_neg": (far & negative).float().sum(),
    }


LOSSES: dict[LossName, Loss] = {
    "longcat": longcat,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "ppo": ppo,
    "hispo": hispo,
    "decoupled_ppo": decoupled_ppo,
}
