"""Root-mean-square normalisation, x / sqrt(mean(x^2) + eps) * weight in float32 (arXiv 1910.07467).

On CPU one pass over the rows forward and one backward (`trainer.cpu.row_kernel`): several times as fast there
as one pass over memory per operation. Elsewhere torch's own kernel does it.

Shapes: T rows (all leading dimensions), D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.cpu.row_kernel import RowKernel


@RowKernel
def _forward(x_TD: Tensor, out_TD: Tensor, *, weight_D: Tensor, eps: float) -> None:
    x_TD = x_TD.float()
    out_TD.copy_(x_TD * _scale(x_TD, eps) * weight_D)


@RowKernel
def _backward(
    x_TD: Tensor, grad_TD: Tensor, dx_TD: Tensor, *, weight_D: Tensor, eps: float
) -> Tensor:
    """Returns the weight's gradient, in float32."""
    x_TD, grad_TD = x_TD.float(), grad_TD.float()
    scale_T1 = _scale(x_TD, eps)
    unit_TD = x_TD * scale_T1
    along_TD = unit_TD * grad_TD
    mean_T1 = (along_TD * weight_D).mean(-1, keepdim=True)
    dx_TD.copy_((grad_TD * weight_D - unit_TD * mean_T1) * scale_T1)
    return along_TD.sum(0)


def _scale(x_TD: Tensor, eps: float) -> Tensor:
    """Factor that makes the mean square of a row 1."""
    return torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD, weight_D, eps):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        out_TD = torch.empty_like(x_TD)
        _forward(x_TD, out_TD, weight_D=weight_D.float(), eps=eps)
        return out_TD

    @staticmethod
    def backward(ctx: Any, grad_TD):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TD, weight_D = ctx.saved_tensors
        dx_TD = torch.empty_like(x_TD)
        dweight_D = _backward(x_TD, grad_TD, dx_TD, weight_D=weight_D.float(), eps=ctx.eps)
        assert dweight_D is not None, "the kernel returns it"
        return dx_TD, dweight_D.to(weight_D.dtype), None


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
