"""A critic for long episodes: a recurrent encoder within turns, a transformer across them, a value per turn.

The state of a turn is everything before its first token. A *segment* is what a state adds to the one before:
the tokens of the policy's turn before and all that was said since; the first segment is the prompt. For turn
k a GRU reads the policy's last hidden states over segment k, and a causal transformer over the turns makes
u_k of what it found in segments 0 to k. V(s_k) is linear in u_k and in the hidden state that predicts the
turn's first token, which is all that `trainer.critic.Critic` has. Every token of the turn has this value.

The hierarchy is HRTMADDPG's (arXiv 2105.04888: recurrent over steps, a transformer over sub-sequences), as a
critic of turns (Turn-PPO, arXiv 2512.17008). Samples with a common beginning (`trainer.shared_prefixes`) have
their hidden states in common, and each its own segments. Leaves out: several samples of one episode.

Shapes: see `trainer.batch`; D the policy's width, d the critic's, K turns of a micro-batch, S its samples
with turns, M turns of the longest.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence

from trainer.batch import PackedBatch
from trainer.critic import Critic
from trainer.critic_config import CriticConfig

# Of the weights that a critic begins with: the same in every run and on every rank.
SEED = 0


@dataclass(frozen=True)
class Turns:
    """The turns of a micro-batch. begin, end: of each, the first and last place of its segment among the
    samples' tokens; the last predicts its first token. of: the turn of each policy token, (N,). counts: how
    many turns each sample has, without those that have none.

    E.g. of samples with loss masks FFTTFT and FFT: begin (0, 2, 6), end (1, 4, 7), of (0, 0, 1, 2), counts
    (2, 1).
    """

    begin_K: Tensor
    end_K: Tensor
    of_N: Tensor
    counts: tuple[int, ...]


def turns_of(batch: PackedBatch) -> Turns:
    """The turns of a micro-batch; of one without policy tokens a single one that no token is of."""
    before_N = batch.before_N
    if not len(before_N):
        zero = torch.zeros(1, dtype=torch.long, device=before_N.device)
        return Turns(zero, zero, before_N, (1,))
    first_N = torch.ones_like(before_N, dtype=torch.bool)
    first_N[1:] = before_N.diff() != 1
    end_K = before_N[first_N]
    ends_S = torch.tensor(batch.lengths, device=end_K.device).cumsum(0)
    sample_K = torch.searchsorted(ends_S, end_K, right=True)
    begin_K = (ends_S - torch.tensor(batch.lengths, device=end_K.device))[sample_K]
    later_K = sample_K[1:] == sample_K[:-1]
    begin_K[1:] = torch.where(later_K, end_K[:-1] + 1, begin_K[1:])
    counts = torch.unique_consecutive(sample_K, return_counts=True)[1]
    return Turns(begin_K, end_K, first_N.cumsum(0) - 1, tuple(counts.tolist()))


class TurnCritic(nn.Module):
    """V(state) of each turn, at each of its tokens; 0 everywhere at first."""

    def __init__(self, hidden_size: int, c: CriticConfig) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.narrow = nn.Linear(hidden_size, c.width)
            self.within = nn.GRU(c.width, c.width, batch_first=True)
            self.across = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    c.width,
                    c.heads,
                    4 * c.width,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(c.layers)
            )
        self.norm = nn.LayerNorm(c.width)
        self.head = Critic(hidden_size + c.width)

    def forward(self, hidden_TD: Tensor, batch: PackedBatch) -> Tensor:
        """(N,) in float32. hidden: the policy's last hidden states, of the stream's tokens."""
        turns = turns_of(batch)
        narrow_Ad = self.narrow(hidden_TD.float())[batch.path_A]
        said_Kd = self._within(narrow_Ad, turns)
        so_far_Kd = self._across(said_Kd, turns.counts)
        now_KD = hidden_TD[batch.path_A[turns.end_K]].float()
        return self.head(torch.cat((now_KD, so_far_Kd), 1))[turns.of_N]

    def centre(self, error: float, share: float) -> None:
        """As `Critic.centre`."""
        self.head.centre(error, share)

    def _within(self, narrow_Ad: Tensor, turns: Turns) -> Tensor:
        """The GRU's last state over each segment."""
        bounds = zip(turns.begin_K.tolist(), turns.end_K.tolist(), strict=True)
        segments = [narrow_Ad[begin : end + 1] for begin, end in bounds]
        return self.within(pack_sequence(segments, enforce_sorted=False))[1][0]

    def _across(self, said_Kd: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Each turn's encoding with those of its sample before it."""
        x_SMd = pad_sequence(list(said_Kd.split(counts)), batch_first=True)
        longest, width = x_SMd.shape[1:]
        x_SMd = x_SMd + positions(longest, width).to(x_SMd)
        # What is behind a sample's last turn is padding, and no turn before it looks there.
        mask_MM = nn.Transformer.generate_square_subsequent_mask(longest, device=x_SMd.device)
        for layer in self.across:
            x_SMd = layer(x_SMd, src_mask=mask_MM, is_causal=True)
        return self.norm(torch.cat([x[:n] for x, n in zip(x_SMd, counts, strict=True)]))


def make_critic(c: CriticConfig, hidden_size: int) -> Critic | TurnCritic:
    """A new critic of a policy of this width."""
    return TurnCritic(hidden_size, c) if c.kind == "turn" else Critic(hidden_size)


def positions(count: int, width: int) -> Tensor:
    """(count, width): sine and cosine of each place, by turns, at wavelengths from 2 pi to 20,000 pi (arXiv
    1706.03762, section 3.5)."""
    place_M1 = torch.arange(count)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = place_M1 * rates
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)[:, :width]
