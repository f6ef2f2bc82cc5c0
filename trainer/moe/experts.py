"""The learner's expert layer: tokens sorted by expert, then one grouped product for all experts.

Takes the place of transformers' expert classes in the families of `trainer.families`.
Zero-computation experts (LongCat-Flash report, section 2.1: E_i(x) = x for i > N) have no weights and never
enter a product: all of them together cost one multiplication per token. No pass scatters: tokens are
gathered into expert order and their results summed back by position, so both directions are deterministic.
With expert parallelism (`share`) pairs go to the ranks that hold their experts and back in between
(`trainer.moe.exchange`); zero-computation experts stay where the token is.

Shapes: T tokens, K experts per token, N routed experts, P token-expert pairs of routed experts (at most T K),
S rows of the products (the pairs, and what fills them up),
R pairs of all ranks for the experts held here, D model width, F expert width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedConfig

from trainer.families.family import Unsupported
from trainer.families.registry import num_experts
from trainer.moe.exchange import from_experts, plan_route, to_experts
from trainer.swiglu import swiglu

# Rows of an expert come in multiples of this where a kernel is compiled for each number of rows that comes
# (bfloat16 on CPU: milliseconds each, and loads differ from step to step).
ROWS = 32


@dataclass(frozen=True)
class Dispatch:
    """Which token goes where: pairs sorted by expert, and the way back.

    token_S, pair_S: the token of each sorted pair, and its index in (T, K) flattened; T K, one past the last,
    where a row only fills up its expert's. ends_N: where each expert's rows end. place_P, start_T: sorted
    places of the P pairs in order of tokens, and where each token's begin among them.
    """

    token_S: Tensor
    pair_S: Tensor
    ends_N: Tensor
    place_P: Tensor
    start_T: Tensor


def dispatch(experts_TK: Tensor, num_experts: int, multiple: int = 1) -> Dispatch:
    """Sort the pairs of routed experts by expert (stable: in order of tokens), each expert's rows filled up
    to a multiple."""
    experts = experts_TK.flatten()
    routed = experts < num_experts
    counts_N = torch.bincount(experts, minlength=num_experts)[:num_experts]
    filled_N = (counts_N + multiple - 1) // multiple * multiple
    ends_N = filled_N.cumsum(0)
    pair_P = torch.argsort(experts, stable=True)[: int(counts_N.sum())]
    before_N = (ends_N - filled_N) - (counts_N.cumsum(0) - counts_N)
    slot_P = torch.arange(len(pair_P), device=experts.device) + before_N[experts[pair_P]]
    pair_S = torch.full((int(ends_N[-1]),), len(experts), device=experts.device)
    pair_S[slot_P] = pair_P
    place = torch.empty_like(experts)
    place[pair_P] = slot_P
    per_token_T = routed.view_as(experts_TK).sum(1)
    return Dispatch(
        token_S=(pair_S // experts_TK.shape[1]).clamp(max=len(experts_TK) - 1),
        pair_S=pair_S,
        ends_N=ends_N.to(torch.int32),
        place_P=place[routed],
        start_T=per_token_T.cumsum(0) - per_token_T,
    )


class _Gather(torch.autograd.Function):
    """x_TD -> x_SD in expert order. Its gradient sums over a token's pairs."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, plan: Dispatch) -> Tensor:  # pyright: ignore
        ctx.plan = plan
        return x_TD.index_select(0, plan.token_S)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> Any:  # pyright: ignore
        return _sum_pairs(grad_SD, ctx.plan), None


class _Combine(torch.autograd.Function):
    """y_SD in expert order -> y_TD, the sum over each token's pairs. The adjoint of _Gather."""

    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, plan: Dispatch) -> Tensor:  # pyright: ignore
        ctx.plan = plan
        return _sum_pairs(y_SD, plan)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:  # pyright: ignore
        return grad_TD.index_select(0, ctx.plan.token_S), None


def _sum_pairs(x_SD: Tensor, plan: Dispatch) -> Tensor:
    return F.embedding_bag(plan.place_P, x_SD, plan.start_T, mode="sum")


class GroupedExperts(nn.Module):
    """Routed experts with weights gate_up_proj (N, 2F, D) and down_proj (N, D, F), then identity experts."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.num_experts = num_experts(config)
        width, hidden = config.moe_intermediate_size, config.hidden_size
        if config.hidden_act != "silu":
            raise Unsupported(
                f"the learner cannot train a policy of the family {config.model_type} with hidden_act "
                f"{config.hidden_act!r}: its experts are written for 'silu'"
            )
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden, width))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=config.initializer_range)
        self.holders: DeviceMesh | None = None

    def share(self, mesh: DeviceMesh) -> None:
        """Keep this rank's part of the experts, which every rank of the 1-D mesh has whole.

        Raises ValueError where the experts cannot be shared out evenly.
        """
        if self.num_experts % mesh.size():
            raise ValueError(
                f"learner.expert_parallel ({mesh.size()}) has to divide the policy's {self.num_experts} "
                "routed experts"
            )
        for name in ("gate_up_proj", "down_proj"):
            whole = getattr(self, name).data
            part = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
            setattr(self, name, nn.Parameter(part))
        self.holders = mesh

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor
    ) -> Tensor:
        """Weighted sum of each token's experts, (T, D)."""
        low = x_TD.device.type == "cpu" and x_TD.dtype == torch.bfloat16 and self.holders is None
        plan = dispatch(experts_TK, self.num_experts, ROWS if low else 1)
        identity_T = (weights_TK * (experts_TK >= self.num_experts)).sum(-1)
        identity_TD = x_TD * identity_T.to(x_TD.dtype)[:, None]
        if self.holders is None and not len(plan.pair_S):
            return identity_TD
        weight_S = F.pad(weights_TK.float().flatten(), (0, 1))[plan.pair_S]
        x_SD: Tensor = _Gather.apply(x_TD, plan)  # pyright: ignore[reportAssignmentType]
        if self.holders is None:
            y_SD = self._products(x_SD, weight_S, plan.ends_N)
        else:
            route = plan_route(plan.ends_N, self.holders.get_group())
            x_RD, weight_R = to_experts(x_SD, weight_S, route)
            y_SD = from_experts(self._products(x_RD, weight_R, route.ends_L), route)
        return identity_TD + _Combine.apply(y_SD, plan)  # pyright: ignore[reportOperatorIssue]

    def _products(self, x_SD: Tensor, weight_S: Tensor, ends_N: Tensor) -> Tensor:
        """Each row through its expert, times its weight; N and S are of the experts held here."""
        # A grouped product of no rows has no gradient, and the exchange needs one.
        if not len(x_SD):
            return x_SD * weight_S[:, None].to(x_SD.dtype)
        inner_S2F = F.grouped_mm(x_SD, _held(self.gate_up_proj).transpose(1, 2), offs=ends_N)
        # The routing weight multiplies the narrow inner activation: fewer elements than the output.
        h_SF = swiglu(inner_S2F, weight_S)
        return F.grouped_mm(h_SF, _held(self.down_proj).transpose(1, 2), offs=ends_N)


def _held(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
