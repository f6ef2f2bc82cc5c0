"""Multi-head latent attention over a packed stream, as in LongCat-Flash (arXiv 2509.01322, section 2.2).

A leaner forward pass for transformers' module: no cache, no layout changes that only a cache needs, the
query's scale folded into that of the scores. The rotary position embedding turns pairs of neighbouring
columns, (x0, x1), (x2, x3), …; here the rows of the weights that make them are taken in another order, so
that all first and all second columns of pairs lie together. Queries and keys get the same order, so their
products stay the same.

Shapes: T tokens, H heads, D head width, of it 2R turned.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.cpu.attention import Layout, packed_attention, plan_buckets
from trainer.cpu.row_kernel import RowKernel
from trainer.norm import RMSNorm, rms_norm


class PackedMLA(nn.Module):
    """The forward pass. A family puts it before transformers' class, which makes what is declared here."""

    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    scaling: float
    mla_scale_q_lora: float
    mla_scale_kv_lora: float
    q_a_proj: nn.Linear
    q_a_layernorm: nn.Module
    q_b_proj: nn.Linear
    kv_a_proj_with_mqa: nn.Linear
    kv_a_layernorm: nn.Module
    kv_b_proj: nn.Linear
    o_proj: nn.Linear

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        layout: Layout | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """(rows, L, hidden) in and out; position_embeddings: cosines and sines, (rows, L, 2R).

        Without a layout each row is a sequence.
        """
        rows, length = hidden_states.shape[:2]
        tokens = rows * length
        layout = layout or Layout(plan_buckets([length] * rows, hidden_states.device))
        cos_TR, sin_TR = (
            p.expand(rows, -1, -1).flatten(0, 1)[:, : p.shape[-1] // 2].float()
            for p in position_embeddings
        )
        narrow, latent, turned = self._narrow(hidden_states.flatten(0, 1))
        order = _pairs_apart(self.q_b_proj, self.num_heads, self.qk_rope_head_dim)
        q = _linear(self.q_a_layernorm(narrow), self.q_b_proj, order)
        query = _Rotate.apply(q.view(tokens, self.num_heads, -1), cos_TR, sin_TR)
        shared = _Rotate.apply(turned[:, None], cos_TR, sin_TR)[:, 0]  # pyright: ignore
        norm = self.kv_a_layernorm
        assert isinstance(norm, RMSNorm), "a model built by trainer.policy"
        kv = self.kv_b_proj(rms_norm(latent, norm.weight * self.mla_scale_kv_lora, norm.eps))
        key, value = kv.view(tokens, self.num_heads, -1).split(
            [self.qk_nope_head_dim, self.v_head_dim], dim=-1
        )
        scale = self.scaling * self.mla_scale_q_lora
        query, key, value, shared = (layout.rows(x) for x in (query, key, value, shared))  # pyright: ignore
        mixed = layout.tokens(packed_attention(query, key, value, scale, layout.buckets, shared))
        return self.o_proj(mixed.flatten(1)).view_as(hidden_states), None

    def _narrow(self, x_TD: Tensor) -> tuple[Tensor, ...]:
        """The queries' narrow vectors, the latent ones of keys and values, and the keys' turned columns."""
        q, kv = self.q_a_proj, self.kv_a_proj_with_mqa
        order = _pairs_apart(kv, 1, self.qk_rope_head_dim)
        if _is_plain(q) and _is_plain(kv):
            both = F.linear(x_TD, torch.cat((q.weight, _Reorder.apply(kv.weight, order))))  # pyright: ignore
        else:
            both = torch.cat((q(x_TD), kv(x_TD)[:, order]), dim=-1)
        return both.split([self.q_lora_rank, self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)


def _pairs_apart(layer: nn.Linear, heads: int, turned: int) -> Tensor:
    """The layer's rows in an order in which, of each head's last `turned`, the first of all pairs come before
    the second."""
    rows_HD = torch.arange(layer.out_features, device=layer.weight.device).view(heads, -1)
    pairs = rows_HD[:, -turned:]
    return torch.cat((rows_HD[:, :-turned], pairs[:, 0::2], pairs[:, 1::2]), dim=1).flatten()


def _is_plain(layer: nn.Linear) -> bool:
    """True if the layer computes with its weight alone, without an adapter (`trainer.lora`)."""
    return type(layer) is nn.Linear and layer.bias is None


def _linear(x_TD: Tensor, layer: nn.Linear, order: Tensor) -> Tensor:
    """The layer's output, its columns in another order."""
    if _is_plain(layer):
        return F.linear(x_TD, _Reorder.apply(layer.weight, order))  # pyright: ignore
    return layer(x_TD)[:, order]


class _Reorder(torch.autograd.Function):
    """Rows in another order, each once: the gradient need not add up, as that of indexing would."""

    @staticmethod
    def forward(ctx: Any, rows_ND, order_N):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(order_N)
        return rows_ND.index_select(0, order_N)

    @staticmethod
    def backward(ctx: Any, grad_ND):  # pyright: ignore[reportIncompatibleMethodOverride]
        (order_N,) = ctx.saved_tensors
        return grad_ND.index_select(0, order_N.argsort()), None


class _Rotate(torch.autograd.Function):
    """Turns the pairs of the last 2R columns by an angle per token and pair; the others stay."""

    @staticmethod
    def forward(ctx: Any, x_THD, cos_TR, sin_TR):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(cos_TR, sin_TR)
        return _turned(x_THD, cos_TR, sin_TR)

    @staticmethod
    def backward(ctx: Any, grad_THD):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos_TR, sin_TR = ctx.saved_tensors
        return _turned(grad_THD, cos_TR, -sin_TR), None, None


def _turned(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    turned = 2 * cos_TR.shape[1]
    out_THD = x_THD.new_empty(x_THD.shape)
    own, pairs = x_THD.split([x_THD.shape[2] - turned, turned], dim=-1)
    out_own, out_pairs = out_THD.split([x_THD.shape[2] - turned, turned], dim=-1)
    out_own.copy_(own)
    sin_T12R = torch.stack((-sin_TR, sin_TR), dim=1)[:, None]
    _turn(
        pairs.unflatten(-1, (2, -1)),
        cos_TR[:, None, None],
        sin_T12R,
        out_pairs.unflatten(-1, (2, -1)),
    )
    return out_THD


@RowKernel
def _turn(x_TH2R: Tensor, cos_T11R: Tensor, sin_T12R: Tensor, out_TH2R: Tensor) -> None:
    """(a, b) -> (a cos - b sin, b cos + a sin)."""
    x_TH2R = x_TH2R.float()
    out_TH2R.copy_(torch.addcmul(x_TH2R * cos_T11R, x_TH2R.roll(1, -2), sin_T12R))
