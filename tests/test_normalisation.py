"""Advantages over a batch or an environment against numpy, and a group's baseline under the batch's scale."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import sample
from test_learner import learner

from trainer.advantage import BATCH_ADVANTAGES, GROUP_ADVANTAGES
from trainer.batch import pack
from trainer.config import LearnerConfig
from trainer.normalisation import normalised
from trainer.sample import TrainSample


def batch() -> list[TrainSample]:
    rng = random.Random(2)
    made = [sample(f"s{i}", rng.randint(6, 30), rng) for i in range(9)]
    return [
        replace(
            s,
            env=("shop", "maths", "flat")[i % 3],
            advantages=tuple((0.5 if i % 3 == 2 else rng.gauss(i, 2)) * m for m in s.loss_mask),
        )
        for i, s in enumerate(made)
    ]


def tokens_of(samples) -> np.ndarray:
    rows = [zip(s.advantages, s.loss_mask, strict=True) for s in samples]
    return np.array([a for row in rows for a, m in row if m])


@pytest.mark.parametrize("by_env", [False, True])
def test_advantages_are_those_of_numpy_over_the_policys_tokens(by_env):
    samples = batch()
    found = normalised(samples, by_env=by_env)
    for env in ("shop", "maths", "flat") if by_env else ("",):
        mine = [s for s in found if env in ("", s.env)]
        values = tokens_of([s for s in samples if env in ("", s.env)])
        if env == "flat":
            assert not tokens_of(mine).any(), "equal advantages are 0"
            continue
        assert tokens_of(mine) == pytest.approx((values - values.mean()) / values.std(), rel=1e-9)
    for s in found:
        assert not any(a for a, m in zip(s.advantages, s.loss_mask, strict=True) if not m)


def test_a_groups_baseline_under_the_batchs_scale_is_that_of_numpy():
    rng = random.Random(3)
    samples, above, lengths = [], [], []
    for group in ([0.0, 1.0, 1.0], [3.0, 5.0, 4.0]):
        for i, a in enumerate(GROUP_ADVANTAGES["reinforce_pp_baseline"](group)):
            s = sample(f"g{i}", rng.randint(6, 20), rng)
            samples.append(replace(s, advantages=tuple(a * m for m in s.loss_mask)))
            above.append(group[i] - np.mean(group))
            lengths.append(s.num_policy_tokens)
    per_token = np.repeat(above, lengths)
    wanted = (per_token - per_token.mean()) / per_token.std()
    found = tokens_of(BATCH_ADVANTAGES["reinforce_pp_baseline"](samples))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_the_learner_trains_on_normalised_advantages(checkpoint):
    ours = learner(checkpoint, normalise="environment", advantage="dr_grpo")
    scores = ours.step(batch()).token_scores
    wanted = normalised(batch(), by_env=True)
    for mine, theirs in zip(scores, wanted, strict=True):
        assert mine.advantages == pytest.approx(tokens_of([theirs]).tolist())


def test_a_float32_head_makes_logits_of_bfloat16_weights_in_float32(checkpoint):
    """Against float32 products of the same hidden states; the plain head's are rounded."""
    gaps = []
    for head in (True, False):
        scorer = learner(checkpoint, dtype="bfloat16", float32_head=head).scorer
        packed = pack(batch(), range(9), torch.device("cpu"))
        with torch.no_grad():
            found = scorer(packed).logprobs_N
            hidden = scorer.model.model.norm(scorer.before_norm[0])[0][packed.source_N]
        assert hidden.dtype == scorer.model.lm_head.weight.dtype == torch.bfloat16
        logits = hidden.float() @ scorer.model.lm_head.weight.float().t()
        wanted = logits.log_softmax(-1).gather(1, packed.target_N[:, None])[:, 0]
        gaps.append((found - wanted).abs().max().item())
    assert gaps[0] < 1e-4 < 1e-3 < gaps[1]


def test_the_usual_advantage_of_a_loss_is_unchanged():
    assert LearnerConfig.model_validate({"loss": {"kind": "reinforce_pp"}}).normalise == "none"
