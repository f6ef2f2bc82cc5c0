"""LongCat-Flash's multi-head latent attention over a packed stream (report, arXiv 2509.01322, section 2.2).

transformers' module with a leaner forward pass: no cache, no layout changes that only a cache needs, the
query's scale folded into that of the scores.

Shapes: T tokens, H heads, R rotary pairs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMLA

from trainer.attention import Bucket, packed_attention, plan_buckets
from trainer.norm import RMSNorm, rms_norm


class PackedMLA(LongcatFlashMLA):
    """Takes the place of LongcatFlashMLA; same parameters."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        buckets: Sequence[Bucket] | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """(rows, L, hidden) in and out; position_embeddings: cosines and sines, (rows, L, 2R).

        Without buckets each row is a sequence.
        """
        rows, length = hidden_states.shape[:2]
        tokens = rows * length
        buckets = buckets or plan_buckets([length] * rows, hidden_states.device)
        x = hidden_states.flatten(0, 1)
        cos, sin = (
            p.expand(rows, -1, -1).flatten(0, 1)[:, : p.shape[-1] // 2].float()
            for p in position_embeddings
        )
        turns_TR = torch.complex(cos, sin)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        query = _Rotate.apply(q.view(tokens, self.num_heads, -1), turns_TR)
        latent, k_rot = self.kv_a_proj_with_mqa(x).split(
            [self.kv_lora_rank, self.qk_rope_head_dim], dim=-1
        )
        shared = _Rotate.apply(k_rot[:, None], turns_TR)[:, 0]  # pyright: ignore
        norm = self.kv_a_layernorm
        assert isinstance(norm, RMSNorm), "a model built by trainer.policy"
        kv = self.kv_b_proj(rms_norm(latent, norm.weight * self.mla_scale_kv_lora, norm.eps))
        key, value = kv.view(tokens, self.num_heads, -1).split(
            [self.qk_nope_head_dim, self.v_head_dim], dim=-1
        )
        scale = self.scaling * self.mla_scale_q_lora
        mixed = packed_attention(query, key, value, scale, buckets, shared)  # pyright: ignore
        return self.o_proj(mixed.flatten(1)).view_as(hidden_states), None


class _Rotate(torch.autograd.Function):
    """Turns the interleaved pairs (x0, x1), (x2, x3), … of the last 2R columns; the others stay.

    transformers moves the pairs apart as well; queries and keys alike, so their products are the same.
    """

    @staticmethod
    def forward(ctx: Any, x_THD, turns_TR):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(turns_TR)
        return _turned(x_THD, turns_TR)

    @staticmethod
    def backward(ctx: Any, grad_THD):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _turned(grad_THD, ctx.saved_tensors[0].conj()), None


def _turned(x_THD: Tensor, turns_TR: Tensor) -> Tensor:
    out = x_THD.clone(memory_format=torch.contiguous_format)
    pairs = out[..., -2 * turns_TR.shape[-1] :]
    turned = torch.view_as_complex(pairs.float().unflatten(-1, (-1, 2))) * turns_TR[:, None]
    pairs.copy_(torch.view_as_real(turned).flatten(-2))
    return out
