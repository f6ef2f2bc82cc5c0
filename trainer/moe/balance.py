"""Keeps the experts' load in order: two losses, a controller of the routers' bias, and metrics.

LongCat-Flash report (arXiv 2509.01322): the controller is equation 2, the device-level balance loss equations
3 to 5 with T the tokens of the whole batch, the hidden z-loss and the ratio of router gradients section 2.3.
N experts compute, Z do not (E = N + Z); K are chosen per token, of which K_e on average should compute.

Shapes: T tokens, L layers, K experts per token, E experts, D groups of computing experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.config import RouterConfig
from trainer.families.registry import num_experts, num_zero_experts
from trainer.moe.router import UNKNOWN, BiasedRouter, Router, RouterRecord

# Share of the mean load below which an expert is idle.
IDLE = 0.02


@dataclass(frozen=True)
class Experts:
    """N experts that compute, Z that do not, K chosen per token; wanted: K_e, how many of them compute."""

    computing: int
    zero: int
    per_token: int
    wanted: float

    @property
    def total(self) -> int:
        """E = N + Z."""
        return self.computing + self.zero


def load_factors(counts_E: Tensor, tokens: int, experts: Experts, groups: int) -> Tensor:
    """(E,): for each expert the f_j of its group; there are D of computing experts and one of all others.

    f_j counts the choices that fell on group j, over T K_e / D (zero experts: over T (K - K_e)), so that each
    is 1 when the load is as wanted. Zero experts that should not be chosen at all have 0.
    """
    own_N, zero_Z = counts_E.float().split((experts.computing, experts.zero))
    own_D = own_N.unflatten(0, (groups, -1)).sum(1) * groups / (experts.wanted * tokens)
    rest = experts.per_token - experts.wanted
    zero = zero_Z.sum() / (rest * tokens) if rest > 0 else zero_Z.new_zeros(())
    group_size = experts.computing // groups
    return torch.cat((own_D.repeat_interleave(group_size), zero.expand(experts.zero)))


def loads(record: RouterRecord, experts: int) -> Tensor:
    """(L, E): the choices that counted in the micro-batch that was just scored."""
    return torch.stack([record.counts(layer, experts) for layer in sorted(record.used_TK)])


def balance_loss(scores_TE: Tensor, f_E: Tensor, copies_T: Tensor | None = None) -> Tensor:
    """sum_j f_j P_j (equations 3 to 5); P_j, the mean probability of group j, is the sum of its experts'.

    copies_T: how often each token counts. The gradient goes through P_j.
    """
    if copies_T is None:
        return (f_E * scores_TE.mean(0)).sum()
    share_T = copies_T / copies_T.sum()
    return (f_E * (share_T[:, None] * scores_TE).sum(0)).sum()


def hidden_z_loss(hidden_TD: Tensor, copies_T: Tensor | None = None) -> Tensor:
    """Sum over tokens of (log sum_i exp |z_i|)^2 of the last hidden state before the final norm; copies_T:
    how often each token counts."""
    loss_T = hidden_TD.float().abs().logsumexp(-1).square()
    return loss_T.sum() if copies_T is None else (loss_T * copies_T).sum()


class BiasController:
    """Moves each router's bias so that its experts get the tokens they should (equation 2).

    b_i += mu (K_e / (K N) - T_i / (K T)) for experts that compute; those that do not keep theirs. mu falls
    linearly to 0 over `bias_decay_steps` updates, where they are set.
    """

    def __init__(self, routers: Sequence[Router], experts: Experts, config: RouterConfig) -> None:
        """Raises ValueError where the model's routers have no bias."""
        self.biases: list[Tensor] = []
        for router in routers:
            if not isinstance(router, BiasedRouter):
                raise ValueError(
                    "learner.router.bias_rate: the routers of this model have no bias; set it to 0"
                )
            self.biases.append(router.e_score_correction_bias)
        self.experts, self.config = experts, config

    @torch.no_grad()
    def update(self, counts_LE: Tensor, step: int) -> None:
        """Move the biases by the loads of a whole batch; `step` counts from 0."""
        x, decay = self.experts, self.config.bias_decay_steps
        rate = self.config.bias_rate * (max(0.0, 1 - step / decay) if decay else 1.0)
        for bias_E, counts_E in zip(self.biases, counts_LE, strict=True):
            share_N = counts_E[: x.computing] / counts_E.sum()
            bias_E[: x.computing] += rate * (x.wanted / x.per_token / x.computing - share_N)


class RouterWatch:
    """Adds up what the routers did over the micro-batches of a step.

    counts_LE: choices that fell on each expert. The gradients are those of mean probabilities: the sum over
    tokens of what reaches a router's scores. factors_LE: f_j of the whole batch, without which there is no
    balance loss: of a micro-batch's own they would depend on how the batch is cut.
    """

    def __init__(self, layers: int, experts: Experts, config: RouterConfig) -> None:
        self.experts, self.config = experts, config
        self.counts_LE = torch.zeros(layers, experts.total)
        self.gradient_LE = torch.zeros(layers, experts.total)
        self.balance_LE = torch.zeros(layers, experts.total)
        # Tokens times layers: compared with the engine; equal as used; equal as the router itself chose.
        self.agreement_3 = torch.zeros(3)
        self.factors_LE: Tensor | None = None

    def plan(self, counts_LE: Tensor, tokens: int) -> None:
        """Fix the balance loss's f_j by the choices of all `tokens` of the batch, over all ranks."""
        x, groups = self.experts, self.config.balance_groups
        self.factors_LE = torch.stack([load_factors(c_E, tokens, x, groups) for c_E in counts_LE])

    def note(self, record: RouterRecord, share: float) -> Tensor:
        """Take in a micro-batch that holds `share` of the step's tokens; returns its balance loss, weighted.

        To be called between forward and backward pass, and after `plan` where there is a balance loss.
        """
        loss = torch.zeros(())
        for layer, used_TK in record.used_TK.items():
            scores_TE = record.scores_TE[layer]
            self.counts_LE[layer] += record.counts(layer, self.experts.total)
            if record.engine_TLK is not None:
                self._compare(
                    record.engine_TLK[:, layer], used_TK, record.own_TK[layer], record.copies_T
                )
            weight = self.config.balance_weight * share
            if weight:
                assert self.factors_LE is not None, "planned before the first micro-batch"
                f_E = self.factors_LE[layer]
                self.balance_LE[layer] += weight * f_E
                f_E = f_E.to(scores_TE.device)
                loss = loss.to(f_E.device) + weight * balance_loss(scores_TE, f_E, record.copies_T)
                scores_TE.register_hook(self._gradient_of(layer))
        return loss

    def _compare(
        self, engine_TK: Tensor, used_TK: Tensor, own_TK: Tensor, copies_T: Tensor | None
    ) -> None:
        known_T = (engine_TK != UNKNOWN).all(-1)
        wanted_TK = engine_TK.sort(-1).values
        counted_T = known_T.long() if copies_T is None else known_T * copies_T
        equal = [
            (counted_T * (x.sort(-1).values == wanted_TK).all(-1)).sum() for x in (used_TK, own_TK)
        ]
        self.agreement_3 += torch.stack((counted_T.sum(), *equal)).float().cpu()

    def _gradient_of(self, layer: int):
        def note(gradient_TE: Tensor) -> None:
            self.gradient_LE[layer] += gradient_TE.sum(0).cpu()

        return note

    def tensors(self) -> list[Tensor]:
        """The sums that add up over ranks too, in place."""
        return [self.counts_LE, self.gradient_LE, self.balance_LE, self.agreement_3]

    def loads(self) -> list[list[float]]:
        """Per layer, the share of tokens that chose each expert; those that compute come first."""
        tokens_L1 = self.counts_LE.sum(1, keepdim=True) / self.experts.per_token
        shares_LE = self.counts_LE / tokens_L1.clamp(min=1e-9)
        return [[round(share, 4) for share in layer] for layer in shares_LE.tolist()]

    def metrics(self) -> dict[str, float]:
        """Metrics of the step; means over layers where the name says nothing else.

        load_violation: the fullest expert's load over the mean, less 1 (arXiv 2408.15664). idle_experts: how
        many of all layers' that compute have less than IDLE of their mean load. gradient_ratio: R_g, the
        balance loss's gradient over the policy loss's, which should stay below 0.1.
        """
        x = self.experts
        load_LN = self.counts_LE[:, : x.computing]
        mean_L1 = load_LN.mean(1, keepdim=True).clamp(min=1e-9)
        violation_L = (load_LN / mean_L1).amax(1) - 1
        computing = (load_LN.sum() / self.counts_LE.sum()).item()
        compared, used, own = self.agreement_3.tolist()
        found = {
            "router/load_violation": violation_L.mean().item(),
            "router/load_violation_max": violation_L.max().item(),
            "router/idle_experts": float((load_LN < IDLE * mean_L1).sum().item()),
            "router/ffn_experts": computing * x.per_token,
            "router/ffn_experts_wanted": x.wanted,
            "router/zero_share": 1 - computing,
        }
        if compared:
            found["router/agreement"] = used / compared
            found["router/agreement_own"] = own / compared
        if self.config.balance_weight:
            policy_LE = self.gradient_LE - self.balance_LE
            ratio_L = self.balance_LE.norm(dim=1) / policy_LE.norm(dim=1).clamp(min=1e-30)
            found["router/gradient_ratio"] = ratio_L.mean().item()
        return found


def experts_of(config: Any, experts_per_token: float | None) -> Experts:
    """The numbers of a transformers config; K_e as given, or in proportion to the experts there are.

    Raises ValueError where K_e is above K.
    """
    computing, zero = num_experts(config), num_zero_experts(config)
    per_token: int = config.num_experts_per_tok
    share = computing / (computing + zero)
    wanted = per_token * share if experts_per_token is None else experts_per_token
    if wanted > per_token:
        raise ValueError(
            f"learner.router.experts_per_token ({wanted:g}) is above the {per_token} experts that this model "
            "chooses per token"
        )
    return Experts(computing, zero, per_token, wanted)
