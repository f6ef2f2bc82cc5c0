"""Arithmetic of fusion on one tensor: pure functions of task vectors.

A task vector is a model's tensor less the base's (arXiv 2212.04089). Shapes: M models, X the tensor's own
shape; a `weights_M` has the sum 1.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Merged:
    """A merged task vector, (X), and the elements that each model gave to it, (M, X)."""

    delta_X: Tensor
    took_MX: Tensor


def normalised(delta_MX: Tensor) -> Tensor:
    """Scale each model's task vector to the mean of their norms, tau_i mean_j |tau_j| / |tau_i|; one of norm
    0 stays so (LongCat-Flash-Thinking, arXiv 2509.18883, section 3.3, which does not say how)."""
    norms_M = norms(delta_MX)
    scale_M = torch.where(norms_M > 0, norms_M.mean() / norms_M, 0.0)
    return delta_MX * _column(scale_M, delta_MX)


def dropped(delta_MX: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """DARE (arXiv 2311.03099, equations 1 to 3): elements are dropped with probability `share`, and the
    others divided by 1 - share, so that the expectation stays."""
    if not share:
        return delta_MX
    kept_MX = torch.rand(delta_MX.shape, generator=draw) >= share
    return delta_MX * kept_MX / (1 - share)


def weighted_sum(delta_MX: Tensor, weights_M: Tensor) -> Merged:
    """sum_i w_i tau_i: task arithmetic (arXiv 2212.04089); of whole weights it is their average."""
    delta_X = (delta_MX * _column(weights_M, delta_MX)).sum(0)
    return Merged(delta_X, delta_MX != 0)


def ties(delta_MX: Tensor, weights_M: Tensor, density: float) -> Merged:
    """TIES (arXiv 2306.01708, section 4): of each model the share `density` of largest magnitude stays, the
    sign of an element is that of the weighted sum, and the models that agree with it are averaged.

    Trimmed by tensor, where the paper trims by whole model.
    """
    trimmed_MX = torch.stack([tau_X * largest(tau_X.abs(), density) for tau_X in delta_MX])
    weights_MX = _column(weights_M, delta_MX)
    sign_X = (trimmed_MX * weights_MX).sum(0).sign()
    return _agreeing(trimmed_MX, sign_X, weights_MX)


def sce(delta_MX: Tensor, density: float) -> Merged:
    """SCE (FuseChat, arXiv 2408.07990, section 3.3): the share `density` of elements whose variance between
    the models is largest stays; a model weighs as the mean of its squares; elements of the minority's sign
    are erased, and the rest is a weighted mean."""
    selected_MX = delta_MX * largest(delta_MX.var(0, correction=0), density)
    energy_M = selected_MX.double().square().flatten(1).mean(1)
    total = energy_M.sum()
    shares_M = torch.where(total > 0, energy_M / total, 0.0).to(delta_MX.dtype)
    return _agreeing(selected_MX, selected_MX.sum(0).sign(), _column(shares_M, delta_MX))


def largest(size_X: Tensor, share: float) -> Tensor:
    """(X) of truths: the largest elements, ceil(share elements) of them."""
    count = size_X.numel()
    keep = math.ceil(share * count - 1e-9)
    if keep >= count:
        return torch.ones_like(size_X, dtype=torch.bool)
    found = torch.zeros(count, dtype=torch.bool)
    found[size_X.flatten().topk(keep, sorted=False).indices] = True
    return found.view(size_X.shape)


def norms(tensor_MX: Tensor) -> Tensor:
    """(M,): of each model."""
    return torch.linalg.vector_norm(tensor_MX.flatten(1), dim=1, dtype=torch.float64).to(
        tensor_MX.dtype
    )


def conflicts(delta_MX: Tensor) -> float:
    """The share of elements that one model raised and another one lowered."""
    if not delta_MX[0].numel():
        return 0.0
    return ((delta_MX > 0).any(0) & (delta_MX < 0).any(0)).double().mean().item()


def generator(seed: int, name: str) -> torch.Generator:
    """The draws of a tensor: the same for the same seed and name, in whatever order tensors come."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _agreeing(delta_MX: Tensor, sign_X: Tensor, weights_MX: Tensor) -> Merged:
    """The weighted mean of the models whose element has this sign; 0 where none has."""
    took_MX = (delta_MX.sign() == sign_X) & (sign_X != 0)
    weight_X = (weights_MX * took_MX).sum(0)
    sum_X = (delta_MX * weights_MX * took_MX).sum(0)
    return Merged(torch.where(weight_X > 0, sum_X / weight_X, 0.0), took_MX)


def _column(values_M: Tensor, like_MX: Tensor) -> Tensor:
    """Values of each model, shaped to multiply (M, X)."""
    return values_M.to(like_MX.dtype).view(-1, *(1,) * (like_MX.dim() - 1))
