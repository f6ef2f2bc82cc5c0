"""Every objective under every correction against a plain reading of its equation: loops over sequences of
float64 scalars, gradients by autograd through those loops. Nothing here is shared with the implementation.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from trainer.config import CorrectionName, LossConfig, LossName, TisConfig
from trainer.correction import CORRECTIONS
from trainer.loss import LOSSES, objective
from trainer.loss_inputs import LossInputs, ValueInputs

T_MAX = 50


@dataclass(frozen=True)
class Sequence:
    """One sample as plain lists, one entry per policy token."""

    new: list[Tensor]
    old: list[float]
    proximal: list[float]
    engine: list[float]
    advantage: float
    values: list[Tensor]
    old_values: list[float]
    returns: list[float]
    starts: list[bool]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def sequence(rng: random.Random, length: int, advantage: float, spread: float) -> Sequence:
    """Log-probs that differ by about `spread` between learner, behaviour and proximal policy.

    Every other sample has an engine that is near the learner but for two tokens, so that masks of samples
    and masks of tokens each have something to keep and something to leave out.
    """
    old = [-rng.uniform(0.1, 4) for _ in range(length)]
    near = rng.random() < 0.6
    engine = [o + rng.gauss(0, 2e-3 if near else 0.7) for o in old]
    if near and length > 3:
        engine[0], engine[2] = old[0] + 0.9, old[2] - 0.9
    return Sequence(
        new=[scalar(o + rng.gauss(0, spread)) for o in old],
        old=old,
        proximal=[o + rng.gauss(0, spread) for o in old],
        engine=engine,
        advantage=advantage,
        values=[scalar(rng.gauss(0, 0.5)) for _ in old],
        old_values=[rng.gauss(0, 0.5) for _ in old],
        returns=[rng.gauss(0, 1) for _ in old],
        starts=[t == 0 or rng.random() < 0.3 for t in range(length)],
    )


def drawn(seed: int, spread: float, lengths=(1, 4, 9, 2, 17, 6)) -> list[Sequence]:
    rng = random.Random(seed)
    return [sequence(rng, n, rng.choice([-2.0, -0.5, 0.7, 1.5]), spread) for n in lengths]


def far_out() -> list[Sequence]:
    """Ratios of e^9 and e^-9 on either sign of the advantage."""
    batch = []
    rng = random.Random(3)
    for advantage in (1.5, -1.5):
        for shift in (9.0, -9.0):
            s = sequence(rng, 5, advantage, 0.1)
            near = [o + 1e-3 for o in s.old]
            batch.append(replace(s, new=[scalar(o + shift) for o in s.old], engine=near))
    return batch


def mixed_staleness() -> list[Sequence]:
    """A group of present samples, stale ones, and one whose first half alone is stale."""
    fresh, half, *stale = drawn(5, 0.4, (6, 8, 5, 7))
    present = [float(n.detach()) for n in fresh.new]
    later = [float(n.detach()) for n in half.new]
    return [
        replace(fresh, old=present, proximal=present, engine=[p - 1e-3 for p in present]),
        replace(half, old=half.old[:4] + later[4:], proximal=later),
        *stale,
    ]


CASES = {
    "some clipped": drawn(0, 0.7),
    "most clipped": drawn(1, 2.0),
    "hardly any clipped": drawn(2, 4e-4),
    "all-equal rewards": [replace(s, advantage=0.0) for s in drawn(3, 0.5)],
    "one-token answers": drawn(4, 0.5, (1,) * 7),
    "ratios far out": far_out(),
    "staleness mixed": mixed_staleness(),
}


def tensors(batch: list[Sequence], chosen: slice = slice(None)) -> LossInputs:
    """The record that the learner would make of these samples of the batch; its leaves are new ones."""
    picked = list(enumerate(batch))[chosen]

    def column(values, dtype=torch.float64) -> Tensor:
        return torch.tensor([v.item() if isinstance(v, Tensor) else v for v in values], dtype=dtype)

    return LossInputs(
        learner_logprobs_N=column(v for _, s in picked for v in s.new).requires_grad_(),
        behaviour_logprobs_N=column(v for _, s in picked for v in s.old),
        proximal_logprobs_N=column(v for _, s in picked for v in s.proximal),
        rollout_logprobs_N=column(v for _, s in picked for v in s.engine),
        advantages_N=column(s.advantage for _, s in picked for _ in s.new),
        sample_N=column((i for i, s in picked for _ in s.new), torch.long),
        sample_tokens_N=column((len(s.new) for _, s in picked for _ in s.new), torch.long),
        num_samples=len(batch),
        num_tokens=sum(len(s.new) for s in batch),
        critic=ValueInputs(
            values_N=column(v for _, s in picked for v in s.values).requires_grad_(),
            behaviour_values_N=column(v for _, s in picked for v in s.old_values),
            returns_N=column(v for _, s in picked for v in s.returns),
            starts_N=column((v for _, s in picked for v in s.starts), torch.bool),
            num_turns=sum(sum(s.starts) for s in batch),
        ),
    )


def bounded(value, low: float, high: float):
    return min(max(value, low), high)


def surrogate(ratio, advantage: float, low: float, high: float):
    return min(ratio * advantage, bounded(ratio, 1 - low, 1 + high) * advantage)


def count(batch: list[Sequence]) -> int:
    return sum(len(s.new) for s in batch)


Weights = list[list[float]]


def clipped_terms(batch: list[Sequence], w: Weights, low: float, high: float) -> list[list[Tensor]]:
    """w min(r A, clip(r) A) of each token of each sample."""
    return [
        [
            weight * surrogate((new - old).exp(), s.advantage, low, high)
            for new, old, weight in zip(s.new, s.old, weights, strict=True)
        ]
        for s, weights in zip(batch, w, strict=True)
    ]


def triplet(ratio, advantage: float):
    inner = surrogate(ratio, advantage, 0.2, 0.28)
    return max(inner, 3 * advantage) if advantage < 0 else inner


def longcat_by_hand(batch: list[Sequence], w: Weights):
    total = 0.0
    for s, weights in zip(batch, w, strict=True):
        for new, old, weight in zip(s.new, s.old, weights, strict=True):
            total = total + weight * triplet((new - old).exp(), s.advantage)
    return -total / (len(batch) * T_MAX)


def grpo_by_hand(batch: list[Sequence], w: Weights):
    means = [sum(terms) / len(terms) for terms in clipped_terms(batch, w, 0.2, 0.2)]
    return -sum(means) / len(batch)


def dr_grpo_by_hand(batch: list[Sequence], w: Weights):
    return -sum(sum(terms) for terms in clipped_terms(batch, w, 0.2, 0.2)) / (len(batch) * T_MAX)


def dapo_by_hand(batch: list[Sequence], w: Weights):
    return -sum(sum(terms) for terms in clipped_terms(batch, w, 0.2, 0.28)) / count(batch)


def gspo_by_hand(batch: list[Sequence], w: Weights):
    total = 0.0
    for s, weights in zip(batch, w, strict=True):
        n = len(s.new)
        ratio = (sum(new - old for new, old in zip(s.new, s.old, strict=True)) / n).exp()
        total = total + sum(weights) / n * surrogate(ratio, s.advantage, 3e-4, 4e-4)
    return -total / len(batch)


def cispo_by_hand(batch: list[Sequence], w: Weights):
    total = 0.0
    for s, weights in zip(batch, w, strict=True):
        for new, old, weight in zip(s.new, s.old, weights, strict=True):
            frozen = min(math.exp(new.item() - old), 5.0)
            total = total + weight * frozen * s.advantage * new
    return -total / count(batch)


def rloo_by_hand(batch: list[Sequence], w: Weights):
    total = 0.0
    for s, weights in zip(batch, w, strict=True):
        total = total + s.advantage * sum(k * n for k, n in zip(weights, s.new, strict=True))
    return -total / len(batch)


def reinforce_pp_by_hand(batch: list[Sequence], w: Weights):
    return -sum(sum(terms) for terms in clipped_terms(batch, w, 0.2, 0.2)) / count(batch)


def ppo_by_hand(batch: list[Sequence], w: Weights):
    policy = -sum(sum(terms) for terms in clipped_terms(batch, w, 0.2, 0.2)) / count(batch)
    errors = []
    for s in batch:
        for v, old, wanted, start in zip(s.values, s.old_values, s.returns, s.starts, strict=True):
            if start:
                near = bounded(v, old - 0.2, old + 0.2)
                errors.append(max((v - wanted) ** 2, (near - wanted) ** 2))
    return policy + 0.5 * sum(errors) / len(errors)


def hispo_by_hand(batch: list[Sequence], w: Weights):
    total = scalar(0.0) * 0
    for s in batch:
        gaps = [old - engine for old, engine in zip(s.old, s.engine, strict=True)]
        if abs(math.exp(sum(gaps) / len(gaps)) - 1) >= 0.01:
            continue
        for new, engine, gap in zip(s.new, s.engine, gaps, strict=True):
            if abs(math.exp(gap) - 1) < 0.5:
                total = total + triplet((new - engine).exp(), s.advantage)
    return -total / (len(batch) * T_MAX)


def decoupled_ppo_by_hand(batch: list[Sequence], w: Weights):
    total = 0.0
    for s, weights in zip(batch, w, strict=True):
        for new, old, proximal, weight in zip(s.new, s.old, s.proximal, weights, strict=True):
            ratio = (new - proximal).exp()
            total = total + weight * math.exp(proximal - old) * surrogate(
                ratio, s.advantage, 0.2, 0.2
            )
    return -total / count(batch)


REFERENCES = {
    "longcat": longcat_by_hand,
    "grpo": grpo_by_hand,
    "dr_grpo": dr_grpo_by_hand,
    "dapo": dapo_by_hand,
    "gspo": gspo_by_hand,
    "cispo": cispo_by_hand,
    "rloo": rloo_by_hand,
    "reinforce_pp": reinforce_pp_by_hand,
    "ppo": ppo_by_hand,
    "hispo": hispo_by_hand,
    "decoupled_ppo": decoupled_ppo_by_hand,
}


def token_ratios(batch: list[Sequence]) -> Weights:
    """Learner over engine, both of the version that wrote the token."""
    return [[math.exp(o - e) for o, e in zip(s.old, s.engine, strict=True)] for s in batch]


def unweighted(batch: list[Sequence]) -> Weights:
    return [[1.0] * len(s.new) for s in batch]


def tis_by_hand(batch: list[Sequence]) -> Weights:
    return [[min(r, 2.0) for r in ratios] for ratios in token_ratios(batch)]


def icepop_by_hand(batch: list[Sequence]) -> Weights:
    return [[r if 0.5 <= r <= 5 else 0.0 for r in ratios] for ratios in token_ratios(batch)]


def mis_by_hand(batch: list[Sequence]) -> Weights:
    found = []
    for ratios in token_ratios(batch):
        mean = math.prod(ratios) ** (1 / len(ratios))
        found.append([mean if 0.99 <= mean <= 1.01 else 0.0] * len(ratios))
    return found


WEIGHTS = {"none": unweighted, "tis": tis_by_hand, "icepop": icepop_by_hand, "mis": mis_by_hand}
PAIRS = [(a, b) for a in REFERENCES for b in WEIGHTS if a != "hispo" or b == "none"]
each_loss = pytest.mark.parametrize("name", REFERENCES)
each_pair = pytest.mark.parametrize(("name", "correction"), PAIRS)


def settings(name: str, correction: str = "none", **changes) -> LossConfig:
    return LossConfig.model_validate(
        {"kind": name, "max_completion_tokens": T_MAX, "correction": correction, **changes}
    )


def gradients(x: LossInputs) -> list[Tensor]:
    """Of the log-probs and of the values, 0 where there is none."""
    assert x.critic is not None
    leaves = (x.learner_logprobs_N, x.critic.values_N)
    return [t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves]


def test_every_name_of_the_configuration_has_a_function_and_a_reference():
    assert set(LOSSES) == set(get_args(LossName)) == set(REFERENCES)
    assert set(CORRECTIONS) == set(get_args(CorrectionName)) == set(WEIGHTS)


@each_pair
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_the_equation(name, correction, case):
    batch = CASES[case]
    x = tensors(batch)
    loss, _ = objective(x, settings(name, correction))
    loss.backward()
    wanted = REFERENCES[name](batch, WEIGHTS[correction](batch))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10, abs=1e-13)
    for found, column in zip(gradients(x), ("new", "values"), strict=True):
        leaves = [v for s in batch for v in getattr(s, column)]
        by_hand = torch.autograd.grad(wanted, leaves, allow_unused=True, retain_graph=True)
        expected = torch.stack([torch.zeros(()).double() if g is None else g for g in by_hand])
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in REFERENCES if n != "rloo"])
def test_the_cases_tell_each_loss_from_a_ratio_of_one(name):
    """Else the comparison above would pass for a loss that clips and weighs nothing."""
    for case in ("some clipped", "staleness mixed"):
        x = tensors(CASES[case])
        plain = replace(
            x,
            learner_logprobs_N=x.rollout_logprobs_N.clone().requires_grad_(),
            behaviour_logprobs_N=x.rollout_logprobs_N,
            proximal_logprobs_N=x.rollout_logprobs_N,
        )
        there, here = (objective(i, settings(name))[0].item() for i in (x, plain))
        assert there != pytest.approx(here, rel=1e-3)


def test_masks_keep_some_and_leave_out_some():
    batch = [s for case in ("some clipped", "staleness mixed") for s in CASES[case]]
    for correction in ("icepop", "mis"):
        weights = [w for ws in WEIGHTS[correction](batch) for w in ws]
        assert 3 < sum(w == 0 for w in weights) < len(weights) - 3
        _, counts = objective(tensors(batch), settings("grpo", correction))
        assert counts[f"loss/{correction}_masked"].item() == sum(w == 0 for w in weights)
    _, counts = objective(tensors(batch), settings("hispo"))
    whole_samples = sum(w == 0 for ws in mis_by_hand(batch) for w in ws)
    assert whole_samples < counts["loss/hispo_masked"].item() < count(batch)


@each_pair
def test_losses_of_micro_batches_add_up_to_that_of_the_batch(name, correction):
    batch, c = CASES["some clipped"], settings(name, correction)
    x = tensors(batch)
    whole, counts = objective(x, c)
    whole.backward()
    parts, part_counts, found = 0.0, dict.fromkeys(counts, 0.0), []
    for cut in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = tensors(batch, cut)
        loss, part_count = objective(part, c)
        loss.backward()
        parts += loss.item()
        found.append(gradients(part))
        part_counts = {k: part_counts[k] + v.item() for k, v in part_count.items()}
    assert parts == pytest.approx(whole.item(), rel=1e-12)
    for index, gradient in enumerate(gradients(x)):
        assert torch.allclose(torch.cat([f[index] for f in found]), gradient, rtol=1e-12)
    assert part_counts == pytest.approx({k: v.item() for k, v in counts.items()})


@each_loss
@pytest.mark.parametrize("shift", [1000.0, -1000.0])
def test_however_far_out_a_ratio_is_value_and_gradient_stay_finite(name, shift):
    batch = [
        replace(s, new=[scalar(o + shift) for o in s.old], advantage=advantage)
        for s, advantage in zip(drawn(8, 0.3), (1.0, -1.0, 0.0) * 2, strict=True)
    ]
    x = tensors(batch)
    narrow = {
        k: v.float() if v.is_floating_point() else v
        for k, v in vars(x).items()
        if isinstance(v, Tensor)
    }
    narrow["learner_logprobs_N"] = narrow["learner_logprobs_N"].detach().requires_grad_()
    x = replace(x, **narrow)
    loss, _ = objective(x, settings(name))
    loss.backward()
    assert math.isfinite(loss.item())
    assert gradients(x)[0].isfinite().all()


def one_token(ratio: float, advantage: float, engine_ratio: float = 1.0) -> LossInputs:
    """A batch of one token with these ratios."""
    s = replace(
        drawn(0, 0.1, (1,))[0],
        new=[scalar(math.log(ratio))],
        old=[0.0],
        proximal=[0.0],
        engine=[-math.log(engine_ratio)],
        advantage=advantage,
    )
    return tensors([s])


ONE = LossConfig(max_completion_tokens=1)  # bounds 0.8 and 1.28, dual clip 3, truncated at 2


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "gradient"),
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
def test_the_clipping_of_longcat_by_hand(ratio, advantage, gain, gradient):
    x = one_token(ratio, advantage)
    loss, _ = objective(x, ONE)
    loss.backward()
    assert -loss.item() == pytest.approx(gain)
    assert -x.learner_logprobs_N.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain"),
    [(1.5, 1.0, 1.2), (0.1, 1.0, 0.1), (0.5, -1.0, -0.8), (5.0, -1.0, -5.0)],
)
def test_grpo_has_no_dual_clip(ratio, advantage, gain):
    loss, _ = objective(one_token(ratio, advantage), LossConfig(kind="grpo"))
    assert -loss.item() == pytest.approx(gain)


@pytest.mark.parametrize(("engine_ratio", "weight"), [(0.5, 0.5), (1.0, 1.0), (1.9, 1.9), (7, 2.0)])
def test_longcat_weighs_a_token_by_the_engine_gap_up_to_its_cap(engine_ratio, weight):
    x = one_token(1.1, 1.0, engine_ratio)
    loss, counts = objective(x, ONE)
    loss.backward()
    assert -loss.item() == pytest.approx(1.1 * weight)
    assert -x.learner_logprobs_N.grad.item() == pytest.approx(1.1 * weight)
    assert counts["loss/tis_capped"].item() == (engine_ratio > 2)


def test_an_infinite_cap_turns_the_truncation_off():
    off = LossConfig(max_completion_tokens=1, tis=TisConfig(cap=math.inf))
    loss, counts = objective(one_token(1.0, 1.0, 7.0), off)
    assert -loss.item() == pytest.approx(7.0)
    assert counts["loss/tis_capped"].item() == 0


@pytest.mark.parametrize(
    "name", ["longcat", "grpo", "dr_grpo", "dapo", "gspo", "reinforce_pp", "ppo", "decoupled_ppo"]
)
def test_the_clip_counts_are_the_tokens_without_a_gradient(name):
    x = tensors(drawn(0, 1.0, (40, 30, 30, 2, 3)))
    loss, counts = objective(x, settings(name))
    loss.backward()
    ended = x.learner_logprobs_N.grad == 0
    assert 0 < ended.sum() <= len(ended)
    assert counts["loss/clipped_pos"].item() == (ended & (x.advantages_N > 0)).sum()
    assert counts["loss/clipped_neg"].item() == (ended & (x.advantages_N < 0)).sum()


@pytest.mark.parametrize("name", ["cispo", "rloo"])
def test_losses_that_end_no_gradient(name):
    x = tensors(CASES["most clipped"])
    objective(x, settings(name))[0].backward()
    assert (x.learner_logprobs_N.grad != 0).all()
