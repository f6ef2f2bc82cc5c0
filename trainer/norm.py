"""Root-mean-square normalisation, x / sqrt(mean(x^2) + eps) * weight in float32 (arXiv 1910.07467).

On CPU rows are worked off in blocks (`trainer.row_blocks`), with a backward pass written out: several times
as fast there as one pass over memory per operation. Elsewhere torch's own kernel does it.

Shapes: T rows (all leading dimensions), D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.row_blocks import row_blocks


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD, weight_D, eps):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        out_TD = torch.empty_like(x_TD)
        for x, out in row_blocks(x_TD, out_TD):
            torch.mul(_normalised(x, eps)[0], weight_D, out=out)
        return out_TD

    @staticmethod
    def backward(ctx: Any, grad_TD):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TD, weight_D = ctx.saved_tensors
        weight = weight_D.float()
        dweight, dx_TD = torch.zeros_like(weight), torch.empty_like(x_TD)
        for x, grad, dx in row_blocks(x_TD, grad_TD, dx_TD):
            x, scale = _normalised(x, ctx.eps)
            grad = grad.to(torch.float32, copy=True)
            along = x * grad
            dweight += along.sum(0)
            along = (along @ weight).div_(len(weight))[:, None]
            dx.copy_(grad.mul_(weight).addcmul_(x, along, value=-1).mul_(scale))
        return dx_TD, dweight.to(weight_D.dtype), None


def _normalised(x_TD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """A copy of x with mean square 1, in float32, and what it was multiplied by."""
    x = x_TD.to(torch.float32, copy=True)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x.mul_(scale), scale


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x normalised over its last dimension, times the weight, in the dtype of x."""
    if x.device.type != "cpu":
        return F.rms_norm(x, weight_D.shape, weight_D, eps)
    out = _RMSNorm.apply(x.reshape(-1, len(weight_D)), weight_D, eps)
    assert isinstance(out, Tensor), "one output"
    return out.view_as(x)


class RMSNorm(nn.Module):
    """Takes the place of transformers' classes of the same meaning."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised over the last dimension."""
        return rms_norm(x, self.weight, self.eps)
