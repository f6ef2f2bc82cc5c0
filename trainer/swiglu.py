"""The gated activation silu(gate) x up, and the dense feed-forward layer that uses it.

On CPU rows are worked off in blocks (`trainer.row_blocks`), forward and backward. Nothing but the input is
kept for the backward pass.

Shapes: S rows, F inner width, D model width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from trainer.row_blocks import row_blocks


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner_S2F, weight_S):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(inner_S2F, weight_S)
        width = inner_S2F.shape[1] // 2
        out_SF = inner_S2F.new_empty(len(inner_S2F), width)
        for inner, weight, out in row_blocks(inner_S2F, weight_S, out_SF):
            gate, up = inner.split(width, dim=-1)
            torch.mul(F.silu(gate), up, out=out)
            out.mul_(weight[:, None])
        return out_SF

    @staticmethod
    def backward(ctx: Any, grad_SF):  # pyright: ignore[reportIncompatibleMethodOverride]
        inner_S2F, weight_S = ctx.saved_tensors
        width = grad_SF.shape[1]
        dinner_S2F, dweight_S = torch.empty_like(inner_S2F), torch.empty_like(weight_S)
        blocks = row_blocks(inner_S2F, weight_S, grad_SF, dinner_S2F, dweight_S)
        for inner, weight, grad, dinner, dweight in blocks:
            gate, up = inner.split(width, dim=-1)
            dgate, dup = dinner.split(width, dim=-1)
            act = F.silu(gate)
            torch.sum(act * up * grad, -1, dtype=torch.float32, out=dweight)
            grad = grad * weight[:, None].to(grad.dtype)
            torch.mul(grad, act, out=dup)
            torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=dgate)
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
        assert config.hidden_act == "silu", f"a layer with {config.hidden_act} is not written here"
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
