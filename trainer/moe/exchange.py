"""Expert parallelism: rows travel to the ranks that hold their experts, and back.

Each rank of a group holds L neighbouring experts. In go a rank's rows sorted by expert, out come the rows of
all ranks for the experts held here, sorted by expert again. Every rank takes part in every exchange, also one
without a row to give or to get. The way there and the way back are each other's gradients.

Shapes: P ranks of the group, L experts of a rank, N = P L experts, S rows of this rank, R rows that arrive
here, D model width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Route:
    """Which rows go where. sent_P, got_P: rows to and from each rank. order_R: arrived rows sorted by expert,
    and place_R, its inverse. ends_L: where the rows of each expert held here end."""

    group: dist.ProcessGroup
    sent_P: list[int]
    got_P: list[int]
    order_R: Tensor
    place_R: Tensor
    ends_L: Tensor


def plan_route(ends_N: Tensor, group: dist.ProcessGroup) -> Route:
    """ends_N: where each expert's rows end, among those of this rank."""
    ranks = group.size()
    sent_PL = ends_N.diff(prepend=ends_N.new_zeros(1)).view(ranks, -1)
    got_PL = torch.empty_like(sent_PL)
    dist.all_to_all_single(got_PL, sent_PL, group=group)
    expert_PL = torch.arange(sent_PL.shape[1], device=ends_N.device).expand_as(got_PL)
    expert_R = expert_PL.flatten().repeat_interleave(got_PL.flatten())
    order_R = torch.argsort(expert_R, stable=True)
    return Route(
        group=group,
        sent_P=sent_PL.sum(1).tolist(),
        got_P=got_PL.sum(1).tolist(),
        order_R=order_R,
        place_R=torch.argsort(order_R),
        ends_L=got_PL.sum(0).cumsum(0).to(torch.int32),
    )


def _there(x_S: Tensor, route: Route) -> Tensor:
    arrived_R = x_S.new_empty(len(route.order_R), *x_S.shape[1:])
    dist.all_to_all_single(
        arrived_R, x_S.contiguous(), route.got_P, route.sent_P, group=route.group
    )
    return arrived_R[route.order_R]


def _back(y_R: Tensor, route: Route) -> Tensor:
    returned_S = y_R.new_empty(sum(route.sent_P), *y_R.shape[1:])
    dist.all_to_all_single(
        returned_S, y_R[route.place_R], route.sent_P, route.got_P, group=route.group
    )
    return returned_S


class _ToExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD, weight_S, route):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.route = route
        return _there(x_SD, route), _there(weight_S, route)

    @staticmethod
    def backward(ctx: Any, dx_RD, dweight_R):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _back(dx_RD, ctx.route), _back(dweight_R, ctx.route), None


class _FromExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RD, route):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.route = route
        return _back(y_RD, route)

    @staticmethod
    def backward(ctx: Any, dy_SD):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _there(dy_SD, ctx.route), None


def to_experts(x_SD: Tensor, weight_S: Tensor, route: Route) -> tuple[Tensor, Tensor]:
    """Rows and their routing weights, where their experts are: (R, D) and (R,), sorted by expert."""
    return _ToExperts.apply(x_SD, weight_S, route)  # pyright: ignore[reportReturnType]


def from_experts(y_RD: Tensor, route: Route) -> Tensor:
    """The rows of this rank, (S, D), as they were before `to_experts`."""
    return _FromExperts.apply(y_RD, route)  # pyright: ignore[reportReturnType]
