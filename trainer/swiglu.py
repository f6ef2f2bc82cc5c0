"""The gated activation silu(gate) x up, and the dense feed-forward layer that uses it.

One pass over the rows forward and one backward (`trainer.cpu.row_kernel`), in float32 inside. Nothing but the
input is kept for the backward pass.

Shapes: S rows, F inner width, D model width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from trainer.cpu.row_kernel import RowKernel
from trainer.families.family import Unsupported


@RowKernel
def _forward(gate_SF: Tensor, up_SF: Tensor, weight_S: Tensor, out_SF: Tensor) -> None:
    out_SF.copy_(F.silu(gate_SF.float()) * up_SF.float() * weight_S[:, None])


@RowKernel
def _backward(
    gate_SF: Tensor,
    up_SF: Tensor,
    weight_S: Tensor,
    grad_SF: Tensor,
    dgate_SF: Tensor,
    dup_SF: Tensor,
    dweight_S: Tensor,
) -> None:
    gate_SF, up_SF, grad_SF = gate_SF.float(), up_SF.float(), grad_SF.float()
    sigmoid_SF = torch.sigmoid(gate_SF)
    act_SF = gate_SF * sigmoid_SF
    dact_SF = grad_SF * up_SF
    dweight_S.copy_((act_SF * dact_SF).sum(-1))
    slope_SF = sigmoid_SF + act_SF - act_SF * sigmoid_SF
    dgate_SF.copy_(dact_SF * weight_S[:, None] * slope_SF)
    dup_SF.copy_(grad_SF * weight_S[:, None] * act_SF)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner_S2F, weight_S):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(inner_S2F, weight_S)
        width = inner_S2F.shape[1] // 2
        out_SF = inner_S2F.new_empty(len(inner_S2F), width)
        _forward(*inner_S2F.split(width, dim=-1), weight_S, out_SF)
        return out_SF

    @staticmethod
    def backward(ctx: Any, grad_SF):  # pyright: ignore[reportIncompatibleMethodOverride]
        inner_S2F, weight_S = ctx.saved_tensors
        width = grad_SF.shape[1]
        dinner_S2F, dweight_S = torch.empty_like(inner_S2F), torch.empty_like(weight_S)
        inner, dinner = inner_S2F.split(width, dim=-1), dinner_S2F.split(width, dim=-1)
        _backward(*inner, weight_S, grad_SF, *dinner, dweight_S)
        return dinner_S2F, dweight_S


def swiglu(inner_S2F: Tensor, weight_S: Tensor | None = None) -> Tensor:
    """silu(first half) x second half, times a float32 weight per row, (S, F)."""
    if weight_S is None:
        weight_S = inner_S2F.new_ones(len(inner_S2F), dtype=torch.float32)
    out = _SwiGLU.apply(inner_S2F, weight_S)
    assert isinstance(out, Tensor), "one output"
    return out


class DenseMLP(nn.Module):
    """down(silu(gate x) x up x), with the parameters of transformers' class."""

    def __init__(self, config: PreTrainedConfig, intermediate_size: int | None = None) -> None:
        super().__init__()
        hidden, width = config.hidden_size, intermediate_size or config.intermediate_size
        if config.hidden_act != "silu":
            raise Unsupported(
                f"the learner cannot train a policy of the family {config.model_type} with hidden_act "
                f"{config.hidden_act!r}: its dense layers are written for 'silu'"
            )
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) in and out."""
        return self.down_proj(swiglu(self._gate_and_up(x.flatten(0, -2)))).view_as(x)

    def _gate_and_up(self, x_SD: Tensor) -> Tensor:
        """(S, 2F): one product, unless a layer computes with more than its weight (`trainer.lora`)."""
        if type(self.gate_proj) is type(self.up_proj) is nn.Linear:
            return F.linear(x_SD, torch.cat((self.gate_proj.weight, self.up_proj.weight)))
        return torch.cat((self.gate_proj(x_SD), self.up_proj(x_SD)), dim=-1)
