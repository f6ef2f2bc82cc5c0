"""The critic of PPO: a value head on the policy's last hidden state, and its targets over turns.

The unit is a turn of the policy, as in Turn-PPO (arXiv 2512.17008): a maximal run of True in a sample's
`loss_mask`. Its state is everything before it, its action is the whole turn, its reward what the environment
gave to it; the rest of the trajectory's reward comes after the last one. The value of a state is read where
the turn's first token is predicted; every token of a turn has the turn's advantage, and only a turn's first
token has a value error. GAE's gamma and lambda are per turn, so a long turn is discounted no more than a
short one.

Shapes: N policy tokens, D hidden size, K turns of a sample.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from trainer.advantage import OverTurns, gae
from trainer.loss import PpoConfig
from trainer.loss_inputs import ValueInputs
from trainer.parallel import local
from trainer.sample import TrainSample


class Critic(nn.Module):
    """V(state), linear in the hidden state that predicts a turn's first token; 0 everywhere at first."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """(N,) in float32."""
        return hidden_ND.float() @ self.weight + self.bias

    @torch.no_grad()
    def centre(self, error: float, share: float) -> None:
        """Move the bias by a share of the returns' mean error; of a sharded bias one rank has it."""
        local(self.bias).add_(share * error)


@dataclass(frozen=True)
class Targets:
    """Targets of the critic for one sample; one entry per policy token, the values where a turn starts.

    E.g. turns of 2 and 1 tokens, values 0 and 0.5, reward 1, gamma = lam = 1: starts (True, False, True),
    returns (1.0, 1.0, 1.0), advantages (1.0, 1.0, 0.5).
    """

    starts: tuple[bool, ...]
    behaviour_values: tuple[float, ...]
    returns: tuple[float, ...]
    advantages: tuple[float, ...]


def turn_targets(
    sample: TrainSample, values: Sequence[float], c: PpoConfig, advantage: OverTurns = gae
) -> Targets:
    """Targets from the behaviour version's value at each policy token; a turn's is that at its start."""
    lengths = sample.turn_lengths
    firsts = [sum(lengths[:k]) for k in range(len(lengths))]
    values_K = [values[first] for first in firsts]
    advantages_K = advantage(values_K, sample.rewards_by_turn, gamma=c.gamma, lam=c.lam)
    turns = [k for k, length in enumerate(lengths) for _ in range(length)]
    starts = set(firsts)
    return Targets(
        starts=tuple(t in starts for t in range(len(turns))),
        behaviour_values=tuple(values_K[k] for k in turns),
        returns=tuple(advantages_K[k] + values_K[k] for k in turns),
        advantages=tuple(advantages_K[k] for k in turns),
    )


def mean_error(targets: Sequence[Targets]) -> float:
    """The mean over the turns of a batch of return less value."""
    errors = [
        wanted - value
        for t in targets
        for wanted, value, start in zip(t.returns, t.behaviour_values, t.starts, strict=True)
        if start
    ]
    return fmean(errors) if errors else 0.0


def with_advantages(sample: TrainSample, targets: Targets) -> TrainSample:
    """The sample with its targets' advantages in place."""
    left = iter(targets.advantages)
    return replace(sample, advantages=tuple(next(left) if m else 0.0 for m in sample.loss_mask))


def value_inputs(values_N: Tensor, sample_N: Tensor, targets: Sequence[Targets]) -> ValueInputs:
    """A micro-batch's part of the targets, by sample; `sample_N` is as in `LossInputs`."""
    mine = [targets[i] for i in sample_N.unique_consecutive().tolist()]

    def column(values: Iterable[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(list(values), dtype=dtype, device=values_N.device)

    return ValueInputs(
        values_N=values_N,
        behaviour_values_N=column((v for t in mine for v in t.behaviour_values), values_N.dtype),
        returns_N=column((v for t in mine for v in t.returns), values_N.dtype),
        starts_N=column((v for t in mine for v in t.starts), torch.bool),
        num_turns=sum(sum(t.starts) for t in targets),
    )
