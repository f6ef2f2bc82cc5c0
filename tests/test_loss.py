"""The objectives against a plain Python reading of their equations: values, gradients, edges."""

import math
import random
from dataclasses import replace
from typing import get_args

import pytest
import torch

from trainer.config import LossConfig, LossName
from trainer.loss import LOSSES, LossInputs, grpo, longcat

CONFIG = LossConfig(max_completion_tokens=50)
SEEDS = range(6)


def inputs(seed: int, tokens: int = 40, spread: float = 0.7) -> LossInputs:
    """Random log-probs in float64, with ratios on both sides of every clipping bound."""
    rng = random.Random(seed)
    behaviour = [-rng.uniform(0.1, 4) for _ in range(tokens)]
    lengths = [1, 4, 10, tokens - 15]

    def tensor(values) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float64)

    return LossInputs(
        learner_logprobs_N=tensor(b + rng.gauss(0, spread) for b in behaviour).requires_grad_(),
        behaviour_logprobs_N=tensor(behaviour),
        rollout_logprobs_N=tensor(b + rng.gauss(0, spread) for b in behaviour),
        advantages_N=tensor(rng.choice([-2.0, -0.5, 0.0, 0.7, 1.5]) for _ in range(tokens)),
        sample_tokens_N=torch.tensor([n for n in lengths for _ in range(n)]),
        num_samples=len(lengths),
    )


def longcat_by_hand(learner: list[float], x: LossInputs, c: LossConfig) -> float:
    """Equation 4 of LongCat-Flash-Thinking, dual clip where A < 0."""
    total = 0.0
    columns = (x.behaviour_logprobs_N, x.rollout_logprobs_N, x.advantages_N)
    for new, old, engine, advantage in zip(learner, *(t.tolist() for t in columns), strict=True):
        ratio = math.exp(new - old)
        clipped = min(max(ratio, 1 - c.clip_neg_low), 1 + c.clip_pos_high)
        inner = min(ratio * advantage, clipped * advantage)
        if advantage < 0:
            inner = max(inner, c.clip_neg_high * advantage)
        total += min(math.exp(old - engine), c.tis_cap) * inner
    return -total / (x.num_samples * c.max_completion_tokens)


def grpo_by_hand(learner: list[float], x: LossInputs, c: LossConfig) -> float:
    """Equation 3 of the GRPO paper, without its KL term: a mean over tokens, then over samples."""
    total = 0.0
    columns = (x.behaviour_logprobs_N, x.advantages_N, x.sample_tokens_N)
    for new, old, advantage, length in zip(learner, *(t.tolist() for t in columns), strict=True):
        ratio = math.exp(new - old)
        clipped = min(max(ratio, 1 - c.clip_neg_low), 1 + c.clip_pos_high)
        total += min(ratio * advantage, clipped * advantage) / length
    return -total / x.num_samples


REFERENCES = {"longcat": longcat_by_hand, "grpo": grpo_by_hand}
each_loss = pytest.mark.parametrize("name", sorted(LOSSES))


def test_every_name_of_the_configuration_has_a_function_and_a_reference():
    assert set(LOSSES) == set(get_args(LossName)) == set(REFERENCES)


@each_loss
@pytest.mark.parametrize("seed", SEEDS)
def test_the_value_is_that_of_the_equation(name, seed):
    x = inputs(seed)
    loss, _ = LOSSES[name](x, CONFIG)
    wanted = REFERENCES[name](x.learner_logprobs_N.tolist(), x, CONFIG)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


@each_loss
@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_is_that_of_the_equation(name, seed):
    x = inputs(seed)
    LOSSES[name](x, CONFIG)[0].backward()
    point, h = x.learner_logprobs_N.tolist(), 1e-6
    for i, gradient in enumerate(x.learner_logprobs_N.grad.tolist()):
        up, down = ([*point[:i], point[i] + d, *point[i + 1 :]] for d in (h, -h))
        difference = (REFERENCES[name](up, x, CONFIG) - REFERENCES[name](down, x, CONFIG)) / (2 * h)
        assert gradient == pytest.approx(difference, rel=1e-5, abs=1e-8)


@each_loss
def test_losses_of_micro_batches_add_up_to_that_of_the_batch(name):
    x = inputs(1)
    whole, counts = LOSSES[name](x, CONFIG)
    whole.backward()
    parts, part_counts, gradients = 0.0, dict.fromkeys(counts, 0.0), []
    for cut in (slice(0, 7), slice(7, 25), slice(25, 40)):
        tensors = {k: v[cut] for k, v in vars(x).items() if isinstance(v, torch.Tensor)}
        tensors["learner_logprobs_N"] = tensors["learner_logprobs_N"].detach().requires_grad_()
        loss, part = LOSSES[name](replace(x, **tensors), CONFIG)
        loss.backward()
        parts += loss.item()
        gradients.append(tensors["learner_logprobs_N"].grad)
        part_counts = {k: part_counts[k] + v.item() for k, v in part.items()}
    assert parts == pytest.approx(whole.item(), rel=1e-12)
    assert torch.allclose(torch.cat(gradients), x.learner_logprobs_N.grad, rtol=1e-12)
    assert part_counts == {k: v.item() for k, v in counts.items()}


def one_token(ratio: float, advantage: float, engine_ratio: float = 1.0) -> LossInputs:
    """A batch of one token with these ratios."""
    new, engine = math.log(ratio), -math.log(engine_ratio)
    return LossInputs(
        learner_logprobs_N=torch.tensor([new], dtype=torch.float64, requires_grad=True),
        behaviour_logprobs_N=torch.zeros(1, dtype=torch.float64),
        rollout_logprobs_N=torch.tensor([engine], dtype=torch.float64),
        advantages_N=torch.tensor([advantage], dtype=torch.float64),
        sample_tokens_N=torch.ones(1),
        num_samples=1,
    )


ONE = LossConfig(max_completion_tokens=1)  # bounds 0.8 and 1.28, dual clip 3, cap 2


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "gradient"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (1.2, 1.0, 1.2, 1.2),
        (1.5, 1.0, 1.28, 0.0),  # clipped above
        (9.0, 2.0, 2.56, 0.0),  # and the dual clip does not touch A > 0
        (0.1, 1.0, 0.1, 0.1),  # no lower bound where A > 0
        (1.0, -1.0, -1.0, -1.0),
        (0.9, -1.0, -0.9, -0.9),
        (0.5, -1.0, -0.8, 0.0),  # clipped below
        (2.5, -1.0, -2.5, -2.5),  # no upper bound but the dual clip where A < 0
        (5.0, -1.0, -3.0, 0.0),  # dual clip
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_clipping_of_longcat_by_hand(ratio, advantage, objective, gradient):
    x = one_token(ratio, advantage)
    loss, _ = longcat(x, ONE)
    loss.backward()
    assert -loss.item() == pytest.approx(objective)
    assert -x.learner_logprobs_N.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective"),
    [(1.5, 1.0, 1.28), (0.1, 1.0, 0.1), (0.5, -1.0, -0.8), (5.0, -1.0, -5.0)],
)
def test_grpo_has_no_dual_clip(ratio, advantage, objective):
    assert -grpo(one_token(ratio, advantage), ONE)[0].item() == pytest.approx(objective)


@pytest.mark.parametrize(("engine_ratio", "weight"), [(0.5, 0.5), (1.0, 1.0), (1.9, 1.9), (7, 2.0)])
def test_the_engine_gap_weighs_a_token_up_to_its_cap(engine_ratio, weight):
    x = one_token(1.1, 1.0, engine_ratio)
    loss, counts = longcat(x, ONE)
    loss.backward()
    assert -loss.item() == pytest.approx(1.1 * weight)
    assert -x.learner_logprobs_N.grad.item() == pytest.approx(1.1 * weight)
    assert counts["loss/tis_capped"].item() == (engine_ratio > 2)


def test_an_infinite_cap_turns_the_truncation_off():
    off = LossConfig(max_completion_tokens=1, tis_cap=math.inf)
    loss, counts = longcat(one_token(1.0, 1.0, 7.0), off)
    assert -loss.item() == pytest.approx(7.0)
    assert counts["loss/tis_capped"].item() == 0


@each_loss
def test_the_clip_counts_are_the_tokens_without_a_gradient(name):
    x = inputs(0, tokens=200, spread=1.5)
    loss, counts = LOSSES[name](x, CONFIG)
    loss.backward()
    ended = (x.learner_logprobs_N.grad == 0) & (x.advantages_N != 0)
    assert counts["loss/clipped_pos"].item() == (ended & (x.advantages_N > 0)).sum()
    assert counts["loss/clipped_neg"].item() == (ended & (x.advantages_N < 0)).sum()
