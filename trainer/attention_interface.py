"""Packed attention as transformers calls it, under the name `PACKED`: windows, soft caps, sinks.

A model hands its attention everything that its own code would do beyond a causal softmax. What is known here
is done; what is not raises Unsupported, for an argument passed over is another model. The mask that the model
made is such an argument: it comes as a `Mask`, which says how far back it lets a token see.

Plain causal attention is `trainer.cpu.attention`; the variants here are written in torch's own operations, a
block of query rows at a time.

Shapes: T tokens, H query heads, G key heads, D head width; C sequences of a bucket, Q query rows, K keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from trainer.cpu.attention import (
    Bucket,
    Layout,
    blocks_of,
    packed_attention,
    padded,
    plan_buckets,
    unpadded,
)
from trainer.families.family import Unsupported

PACKED = "dorado_packed"
# Arguments that change nothing here: positions are in queries and keys already, and there is no cache.
HARMLESS = {"position_ids", "cache_position", "use_cache", "position_embeddings"}


@dataclass(frozen=True)
class Mask:
    """Stands for the mask that a model made. window: each token sees itself and window - 1 before it, None
    for all before it. causal: it is such a mask, and no other."""

    window: int | None
    causal: bool


def _mask(*, local_size: int | None = None, use_vmap: bool = False, **others: Any) -> Mask:
    """As transformers calls it to make a mask. `use_vmap`: the model has added conditions of its own."""
    bidirectional = "allow_is_bidirectional_skip" in others
    return Mask(local_size, not use_vmap and not bidirectional)


def variant_attention(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    scale: float,
    buckets: Sequence[Bucket],
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Attention of each token over its own sequence up to itself, (T, H, D), softmax in float32.

    window: it sees itself and window - 1 tokens before it (arXiv 2004.05150). softcap: scores are softcap
    tanh(score / softcap) (Gemma 2, arXiv 2408.00118). sinks: a score per head that takes part in the softmax
    and has no value (arXiv 2309.17453).
    """
    groups = key_TGD.shape[1]
    out: list[Tensor] = []
    for bucket in buckets:
        q = padded(query_THD, bucket).unflatten(2, (groups, -1))
        k, v = padded(key_TGD, bucket), padded(value_TGD, bucket)
        parts = [q.new_zeros(*q.shape[:1], bucket.skip, *query_THD.shape[1:2], v.shape[-1])]
        for start, end in blocks_of(bucket.length, bucket.skip):
            first = 0 if window is None else max(0, start - window + 1)
            scores = torch.einsum("cqgrd,ckgd->cgrqk", q[:, start:end], k[:, first:end]).float()
            scores = scores * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            hidden_QK = _hidden(start, end, first, window, scores.device)
            scores = scores.masked_fill(hidden_QK, float("-inf"))
            if sinks_H is not None:
                sink = sinks_H.float().view(1, groups, -1, 1, 1).expand(*scores.shape[:4], 1)
                scores = torch.cat((scores, sink), dim=-1)
            weights = torch.softmax(scores, -1)[..., : end - first].to(v.dtype)
            parts.append(torch.einsum("cgrqk,ckgd->cqgrd", weights, v[:, first:end]).flatten(2, 3))
        out.append(unpadded(torch.cat(parts, dim=1), bucket))
    return torch.cat(out)


def _hidden(start: int, end: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """(Q, K): True where query rows [start, end) do not see keys [first, end)."""
    back_QK = torch.arange(start, end, device=device)[:, None] - torch.arange(
        first, end, device=device
    )
    hidden_QK = back_QK < 0
    return hidden_QK if window is None else hidden_QK | (back_QK >= window)


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: (rows, heads, L, D) in, (rows, L, H, V) out.

    `layout` comes through the model's keyword arguments; without it each row is a sequence. Dropout is
    passed over: the engine that the policy acts in has none. Raises Unsupported.
    """
    _check(attention_mask, sliding_window, is_causal, others)
    rows, length = query.shape[0], query.shape[2]
    layout = layout or Layout(plan_buckets([length] * rows, query.device))
    flat = [layout.rows(x.transpose(1, 2).flatten(0, 1)) for x in (query, key, value)]
    buckets = layout.buckets
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if sliding_window is not None and sliding_window >= max(b.length for b in buckets):
        sliding_window = None
    if sliding_window is None and softcap is None and s_aux is None:
        out = packed_attention(flat[0], flat[1], flat[2], scale, buckets)
    else:
        out = variant_attention(
            flat[0],
            flat[1],
            flat[2],
            scale,
            buckets,
            window=sliding_window,
            softcap=softcap,
            sinks_H=s_aux,
        )
    return layout.tokens(out).unflatten(0, (rows, length)), None


def _check(
    mask: Mask | None, window: int | None, is_causal: bool | None, others: dict[str, Any]
) -> None:
    """Raise Unsupported where a layer asks its attention for anything that is not done here."""
    unknown = sorted(
        name
        for name, value in others.items()
        if name not in HARMLESS and value is not None and value is not False
    )
    if unknown:
        raise Unsupported(
            f"its attention is handed {' and '.join(unknown)}, which the learner's does not know"
        )
    if mask is not None and not isinstance(mask, Mask):
        raise Unsupported("its attention is handed a mask that its own code made")
    if is_causal is False or (mask is not None and not mask.causal):
        raise Unsupported("its attention is not causal, or masked by a condition of its own")
    if mask is not None and mask.window != window:
        raise Unsupported(
            f"its mask reaches back {_tokens(mask.window)}, and its attention is told {_tokens(window)}"
        )


def _tokens(window: int | None) -> str:
    return "over all tokens" if window is None else f"{window} tokens"


AttentionInterface.register(PACKED, _interface)  # pyright: ignore[reportArgumentType]
AttentionMaskInterface.register(PACKED, _mask)  # pyright: ignore[reportArgumentType]
