"""Routers that record what they choose, and can repeat what the engine chose.

A family puts one of the two classes before transformers' own in the bases of a class that takes its place
(`trainer.families`). All routers of a policy share one record: for each micro-batch it holds the choices that
are to be repeated, what the routers chose and how sure they were. Replay (R3, arXiv 2510.11370) repeats the
engine's choices: learner and engine compute the same function.

Shapes: T tokens, L layers with a router, K experts per token, E experts, those without computation included.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

# Where nobody knows what the engine chose.
UNKNOWN = -1


@dataclass
class RouterRecord:
    """The record that the routers of one policy share, for one micro-batch at a time.

    engine_TLK: the engine's choices, UNKNOWN where there are none; None where there are none at all.
    replay: whether they are repeated. copies_T: how many samples have each token; None where each is of one.
    By layer: used_TK and own_TK, the choices that counted and those that
    the router made itself; scores_TE, its probabilities, with gradient.
    """

    replay: bool = False
    engine_TLK: Tensor | None = None
    copies_T: Tensor | None = None
    used_TK: dict[int, Tensor] = field(default_factory=dict)
    own_TK: dict[int, Tensor] = field(default_factory=dict)
    scores_TE: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, engine_TLK: Tensor | None, copies_T: Tensor | None = None) -> None:
        """Start over for a micro-batch."""
        self.engine_TLK, self.copies_T = engine_TLK, copies_T
        for records in (self.used_TK, self.own_TK, self.scores_TE):
            records.clear()

    def counts(self, layer: int, experts: int) -> Tensor:
        """(E,) on the CPU: the choices that fell on each of `experts`, over the tokens of all samples."""
        used_TK = self.used_TK[layer]
        copies = None
        if self.copies_T is not None:
            copies = self.copies_T[:, None].expand_as(used_TK).flatten().double()
        return torch.bincount(used_TK.flatten(), copies, experts).float().cpu()

    def decide(self, layer: int, scores_TE: Tensor, own_TK: Tensor) -> Tensor:
        """The choices that count, from a router's own; notes both."""
        used_TK = own_TK
        if self.replay and self.engine_TLK is not None:
            engine_TK = self.engine_TLK[:, layer]
            used_TK = torch.where(engine_TK == UNKNOWN, own_TK, engine_TK)
        self.used_TK[layer], self.own_TK[layer], self.scores_TE[layer] = used_TK, own_TK, scores_TE
        return used_TK


class Router(nn.Module):
    """A router with a record, and its place among the policy's routers."""

    top_k: int
    hidden_dim: int

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.routing_record, self.layer = RouterRecord(), 0


class BiasedRouter(Router):
    """Softmax over all experts in float32, top-k on score + bias, raw scores x scale as weights.

    LongCat-Flash report (arXiv 2509.01322), section 2.1. By itself it is transformers' router.
    """

    classifier: nn.Linear
    e_score_correction_bias: Tensor
    routed_scaling_factor: float

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (T, E), weights (T, K) and experts (T, K) of (…, D) hidden states."""
        x_TD = hidden_states.view(-1, self.hidden_dim)
        logits_TE = F.linear(x_TD.float(), self.classifier.weight.float())
        scores_TE = logits_TE.softmax(dim=-1)
        biased_TE = scores_TE.detach() + self.e_score_correction_bias
        own_TK = biased_TE.topk(self.top_k, dim=-1, sorted=False).indices
        chosen_TK = self.routing_record.decide(self.layer, scores_TE, own_TK)
        weights_TK = scores_TE.gather(1, chosen_TK) * self.routed_scaling_factor
        return logits_TE, weights_TK, chosen_TK


class SoftmaxRouter(Router):
    """Softmax over all experts, the top-k of it, their weights made to sum to 1 where the config says so."""

    weight: nn.Parameter
    norm_topk_prob: bool

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (T, E), weights (T, K) and experts (T, K) of (…, D) hidden states."""
        x_TD = hidden_states.reshape(-1, self.hidden_dim)
        logits_TE = F.linear(x_TD, self.weight)
        scores_TE = logits_TE.float().softmax(dim=-1)
        own_TK = scores_TE.detach().topk(self.top_k, dim=-1).indices
        chosen_TK = self.routing_record.decide(self.layer, scores_TE, own_TK)
        weights_TK = scores_TE.gather(1, chosen_TK)
        if self.norm_topk_prob:
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        return logits_TE, weights_TK, chosen_TK


def share_record(model: nn.Module) -> tuple[list[Router], RouterRecord]:
    """The model's routers in order of their layers, and the record that they all share from now on."""
    routers = [m for m in model.modules() if isinstance(m, Router)]
    record = RouterRecord()
    for layer, router in enumerate(routers):
        router.routing_record, router.layer = record, layer
    return routers, record
