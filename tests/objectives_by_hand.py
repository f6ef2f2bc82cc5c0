"""Every objective and correction by hand: loops over sequences of float64 scalars, each line as its paper has
it. Nothing here is shared with the implementation but the record that carries a micro-batch.
"""

import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
        max_completion_tokens=T_MAX,
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
            stale = min(math.exp(proximal - old), 5.0)
            total = total + weight * stale * surrogate(ratio, s.advantage, 0.2, 0.2)
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
        whole = math.prod(ratios)
        found.append([whole if whole <= 2 else 0.0] * len(ratios))
    return found


def geometric_rejection_by_hand(batch: list[Sequence]) -> Weights:
    found = []
    for ratios in token_ratios(batch):
        mean = math.prod(ratios) ** (1 / len(ratios))
        found.append([mean if 0.99 <= mean <= 1.01 else 0.0] * len(ratios))
    return found


def sequence_tis_by_hand(batch: list[Sequence]) -> Weights:
    return [[min(math.prod(r), 2.0)] * len(r) for r in token_ratios(batch)]


def geometric_tis_by_hand(batch: list[Sequence]) -> Weights:
    found = []
    for ratios in token_ratios(batch):
        mean = math.prod(ratios) ** (1 / len(ratios))
        found.append([min(r, 2.0) if 0.99 <= mean <= 1.01 else 0.0 for r in ratios])
    return found


WEIGHTS = {
    "none": unweighted,
    "tis": tis_by_hand,
    "icepop": icepop_by_hand,
    "mis": mis_by_hand,
    "geometric_rejection": geometric_rejection_by_hand,
    "sequence_tis": sequence_tis_by_hand,
    "geometric_tis": geometric_tis_by_hand,
}
