"""Causal attention over packed sequences: each sees itself only, and no mask is as long as a batch.

The tokens of a micro-batch are one flat stream, its sequences sorted by length (`trainer.batch`). Those of
about the same length share a bucket and are computed as one dense batch; what a bucket pads is attention
only, every other layer sees the stream as it is. Registered with transformers under `PACKED`.

On CPU both passes are written out as batched products, which reach several times the speed of the fused
kernel there in bfloat16. Elsewhere torch's scaled_dot_product_attention does the work.

Shapes: T tokens, H query heads, G key heads, L longest of a bucket, D, P and V head widths.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Shortest sequence of a bucket over its longest: what is lost to padding, against fewer, larger products.
SHORTEST = 0.8
# Query rows of one product: bounds the score matrix, and skips what lies above the diagonal.
BLOCK = 128
# Of sequences up to this length the attention weights are kept for the backward pass.
KEEP = 512


@dataclass(frozen=True)
class Bucket:
    """Sequences computed together: tokens [start, end) of the stream, `count` of them, padded to `length`.

    slots_T: where each token lies in the padded (count x length) batch; None where nothing is padded. skip:
    places from the first on whose attention nobody asks for; what is given there is arbitrary.
    """

    start: int
    end: int
    count: int
    length: int
    slots_T: Tensor | None
    skip: int = 0


@dataclass(frozen=True)
class Layout:
    """The sequences of a stream of tokens. Where some begin alike, the stream has what they share once, and
    attention's rows have it in each. tokens_R: the token of each row; rows_T: the first row of each token;
    both None where each token is a row."""

    buckets: tuple[Bucket, ...]
    tokens_R: Tensor | None = None
    rows_T: Tensor | None = None

    def rows(self, x_TX: Tensor) -> Tensor:
        """(R, ...) of (T, ...)."""
        return x_TX if self.tokens_R is None else x_TX.index_select(0, self.tokens_R)

    def tokens(self, x_RX: Tensor) -> Tensor:
        """(T, ...) of (R, ...)."""
        return x_RX if self.rows_T is None else x_RX.index_select(0, self.rows_T)


def plan_buckets(
    lengths: Sequence[int], device: torch.device, skips: Sequence[int] = ()
) -> tuple[Bucket, ...]:
    """Buckets of a stream of sequences of these lengths, e.g. (40, 38, 12, 12) -> two of two.

    Neighbours share a bucket while none is shorter than SHORTEST of the longest, and none of them has to be
    computed from its first place where another may be skipped up to a place (skips; none by default).
    """
    skips = skips or [0] * len(lengths)
    buckets: list[Bucket] = []
    start = first = 0
    while first < len(lengths):
        last = first
        longest = shortest = lengths[first]
        while last + 1 < len(lengths):
            high, low = max(longest, lengths[last + 1]), min(shortest, lengths[last + 1])
            if low < SHORTEST * high or (skips[first] == 0) != (skips[last + 1] == 0):
                break
            longest, shortest, last = high, low, last + 1
        inside = lengths[first : last + 1]
        slots = None
        if shortest < longest:
            parts = [torch.arange(n) + i * longest for i, n in enumerate(inside)]
            slots = torch.cat(parts).to(device)
        skip = min(skips[first : last + 1])
        buckets.append(Bucket(start, start + sum(inside), len(inside), longest, slots, skip))
        start += sum(inside)
        first = last + 1
    return tuple(buckets)


def packed_attention(
    query_THD: Tensor,
    key_TGP: Tensor,
    value_TGV: Tensor,
    scale: float,
    buckets: Sequence[Bucket],
    shared_TR: Tensor | None = None,
) -> Tensor:
    """Softmax attention of each token over its own sequence up to itself, (T, H, V).

    shared_TR: a part of the keys that all heads have in common, behind their own (D = P + R).
    """
    if shared_TR is None:
        shared_TR = key_TGP.new_empty(len(key_TGP), 0)
    if query_THD.device.type == "cpu":
        out = _BlockedAttention.apply(query_THD, key_TGP, shared_TR, value_TGV, scale, buckets)
        assert isinstance(out, Tensor), "one output"
        return out
    key_TGD = torch.cat((key_TGP, shared_TR[:, None].expand(-1, key_TGP.shape[1], -1)), dim=-1)
    return sdpa_attention(query_THD, key_TGD, value_TGV, scale, buckets)


def sdpa_attention(
    query_THD: Tensor, key_TGD: Tensor, value_TGV: Tensor, scale: float, buckets: Sequence[Bucket]
) -> Tensor:
    """The same by torch's own kernels, one call per bucket."""
    # The fused kernels take one head width only: values narrower than keys are filled up.
    width = value_TGV.shape[-1]
    value_TGV = F.pad(value_TGV, (0, query_THD.shape[-1] - width))
    grouped = query_THD.shape[1] != key_TGD.shape[1]
    out = []
    for bucket in buckets:
        q, k, v = (padded(x, bucket).transpose(1, 2) for x in (query_THD, key_TGD, value_TGV))
        mixed_BHLV = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
        out.append(unpadded(mixed_BHLV[..., :width].transpose(1, 2), bucket))
    return torch.cat(out)


def padded(x_THD: Tensor, bucket: Bucket) -> Tensor:
    """(count, length, H, D): a bucket's sequences, zeros behind the shorter ones."""
    x = x_THD[bucket.start : bucket.end]
    if bucket.slots_T is not None:
        x = x.new_zeros(bucket.count * bucket.length, *x.shape[1:]).index_copy(0, bucket.slots_T, x)
    return x.unflatten(0, (bucket.count, bucket.length))


def unpadded(x_CLHD: Tensor, bucket: Bucket) -> Tensor:
    """The tokens of (count, length, H, D), (T, H, D)."""
    flat = x_CLHD.flatten(0, 1)
    return flat if bucket.slots_T is None else flat[bucket.slots_T]


class _BlockedAttention(torch.autograd.Function):
    """Batched products over blocks of query rows, which leave out what lies above the diagonal.

    Inside: B = count x G; X rows of one product, those of a block in all R query heads of a key head.
    """

    @staticmethod
    def forward(ctx: Any, query_THD, key_TGP, shared_TR, value_TGV, scale, buckets):  # pyright: ignore
        ctx.scale, ctx.buckets, ctx.own = scale, buckets, key_TGP.shape[-1]
        keep, kept = any(ctx.needs_input_grad), []
        groups = key_TGP.shape[1]
        out_THV = query_THD.new_empty(*query_THD.shape[:2], value_TGV.shape[-1])
        for bucket in buckets:
            q_CLHD = padded(query_THD, bucket)
            k, v = _heads(key_TGP, shared_TR, value_TGV, bucket)
            if keep:
                kept += (k, v)
            with _padded_rows(out_THV, bucket) as out_CLHV:
                for start, end in blocks_of(bucket.length, bucket.skip):
                    q = _rows(q_CLHD[:, start:end], groups)
                    weights = _weights(q, k[:, :end], end - start, scale)
                    if keep:
                        kept.append(q)
                    if keep and bucket.length <= KEEP:
                        kept.append(weights)
                    out_CLHV[:, start:end] = _tokens(
                        torch.bmm(weights, v[:, :end]), bucket, end - start
                    )
        ctx.save_for_backward(*kept)
        return out_THV

    @staticmethod
    def backward(ctx: Any, grad_THV):  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, own = ctx.scale, ctx.own
        kept = iter(ctx.saved_tensors)
        grads: list[Tensor] = []
        for bucket in ctx.buckets:
            k, v = next(kept), next(kept)
            blocks = blocks_of(bucket.length, bucket.skip)
            each = 2 if bucket.length <= KEEP else 1
            kept_blocks = [[next(kept) for _ in range(each)] for _ in blocks]
            groups = len(k) // bucket.count
            if not grads:
                grads = _token_grads(grad_THV, k, v, groups, own)
            dquery, dkey, dshared, dvalue = grads
            grad_CLHV = padded(grad_THV, bucket)
            dk, dv = torch.empty_like(k), torch.empty_like(v)
            with _padded_rows(dquery, bucket) as dq_CLHD:
                dq_CLHD[:, : bucket.skip] = 0
                # Last block first: it reaches all keys.
                for start, end in reversed(blocks):
                    rows, beta = end - start, 0 if end == bucket.length else 1
                    q, *weights_kept = kept_blocks.pop()
                    weights = (
                        weights_kept[0] if weights_kept else _weights(q, k[:, :end], rows, scale)
                    )
                    g = _rows(grad_CLHV[:, start:end], groups)
                    dv[:, :end].baddbmm_(weights.transpose(1, 2), g, beta=beta)
                    dweights = torch.bmm(g, v[:, :end].transpose(1, 2))
                    dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, g.dtype)
                    dk[:, :end].baddbmm_(dscores.transpose(1, 2), q, beta=beta, alpha=scale)
                    dq_CLHD[:, start:end] = _tokens(
                        _product(dscores, k[:, :end], scale), bucket, rows
                    )
            dk_CLGD = _tokens(dk, bucket, bucket.length)
            inside = slice(bucket.start, bucket.end)
            dkey[inside] = unpadded(dk_CLGD[..., :own], bucket)
            dshared[inside] = unpadded(dk_CLGD[..., own:].sum(2), bucket)
            dvalue[inside] = unpadded(_tokens(dv, bucket, bucket.length), bucket)
        return *grads, None, None


def _token_grads(
    grad_THV: Tensor, k_BLD: Tensor, v_BLV: Tensor, groups: int, own: int
) -> list[Tensor]:
    """Room for the gradients of queries, keys, what keys share, and values, in the order of tokens."""
    tokens, heads = grad_THV.shape[:2]
    width = k_BLD.shape[-1]
    shapes = ((heads, width), (groups, own), (width - own,), (groups, v_BLV.shape[-1]))
    return [grad_THV.new_empty(tokens, *shape) for shape in shapes]


@contextmanager
def _padded_rows(x_THD: Tensor, bucket: Bucket) -> Iterator[Tensor]:
    """(count, length, H, D) to write a bucket's rows of x into."""
    rows = x_THD[bucket.start : bucket.end]
    if bucket.slots_T is None:
        yield rows.unflatten(0, (bucket.count, bucket.length))
        return
    padded = x_THD.new_empty(bucket.count, bucket.length, *x_THD.shape[1:])
    yield padded
    torch.index_select(padded.flatten(0, 1), 0, bucket.slots_T, out=rows)


def blocks_of(length: int, skip: int = 0) -> list[tuple[int, int]]:
    """Blocks of query rows of sequences of this length: the first row of each, and one past its last."""
    return [(start, min(start + BLOCK, length)) for start in range(skip, length, BLOCK)]


def _heads(
    key_TGP: Tensor, shared_TR: Tensor, value_TGV: Tensor, bucket: Bucket
) -> tuple[Tensor, Tensor]:
    """A bucket's (B, L, D) keys and (B, L, V) values."""
    groups, own = key_TGP.shape[1:]
    v = _rows(padded(value_TGV, bucket), groups)
    k = v.new_empty(*v.shape[:2], own + shared_TR.shape[1])
    k_CGLD = k.unflatten(0, (bucket.count, groups))
    k_CGLD[..., :own] = padded(key_TGP, bucket).transpose(1, 2)
    k_CGLD[..., own:] = padded(shared_TR, bucket)[:, None]
    return k, v


def _rows(x_CLHD: Tensor, groups: int) -> Tensor:
    """(count, L, H, D) as (B, X, D), X = R L."""
    x = x_CLHD.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
    return x.flatten(2, 3).flatten(0, 1).contiguous()


def _tokens(x_BXD: Tensor, bucket: Bucket, length: int) -> Tensor:
    """(B, X, D) as (count, L, H, D)."""
    x = x_BXD.unflatten(1, (-1, length)).unflatten(0, (bucket.count, -1))
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _weights(q_BXD: Tensor, k_BKD: Tensor, rows: int, scale: float) -> Tensor:
    """Attention weights of the last `rows` queries of all R heads over all keys so far, (B, X, K)."""
    scores_BXK = _product(q_BXD, k_BKD.transpose(1, 2), scale)
    mask = torch.full((rows, rows), float("-inf"), dtype=q_BXD.dtype).triu(1)
    scores_BXK.unflatten(1, (-1, rows))[..., -rows:] += mask
    return torch.softmax(scores_BXK, -1)


def _product(a_BXY: Tensor, b_BYZ: Tensor, scale: float) -> Tensor:
    """scale a b, (B, X, Z)."""
    out_BXZ = a_BXY.new_empty(*a_BXY.shape[:2], b_BYZ.shape[-1])
    return out_BXZ.baddbmm_(a_BXY, b_BYZ, beta=0, alpha=scale)
