"""Packed attention against a plain softmax over each sequence on its own, values and gradients."""

import math

import pytest
import torch
from torch import Tensor

from trainer.cpu.attention import BLOCK, KEEP, packed_attention, plan_buckets, sdpa_attention

CPU = torch.device("cpu")


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: list[int]) -> Tensor:
    """Head by head, token by token."""
    out = torch.zeros(*q.shape[:2], v.shape[-1], dtype=q.dtype)
    share = q.shape[1] // k.shape[1]
    start = 0
    for n in lengths:
        for t in range(start, start + n):
            for head in range(q.shape[1]):
                past = slice(start, t + 1)
                scores = k[past, head // share] @ q[t, head] * scale
                out[t, head] = torch.softmax(scores, 0) @ v[past, head // share]
        start += n
    return out


def inputs(lengths: list[int], heads: int, groups: int, shared: int, dtype=torch.float64):
    torch.manual_seed(0)
    tokens = sum(lengths)
    shapes = (
        (tokens, heads, 6 + shared),
        (tokens, groups, 6),
        (tokens, shared),
        (tokens, groups, 5),
    )
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


def joined(k: Tensor, r: Tensor) -> Tensor:
    return torch.cat((k, r[:, None].expand(-1, k.shape[1], -1)), dim=-1)


@pytest.mark.parametrize("lengths", [[7], [9, 9, 9], [20, 17, 3, 1], [1, 1], [12, 11, 4, 4]])
@pytest.mark.parametrize(("heads", "groups", "shared"), [(4, 4, 3), (4, 2, 0)])
def test_each_sequence_attends_to_itself_only(lengths, heads, groups, shared):
    q, k, r, v = inputs(lengths, heads, groups, shared)
    wanted = plain(q, joined(k, r), v, 0.3, lengths)
    weight = torch.randn_like(wanted)
    grads = torch.autograd.grad((wanted * weight).sum(), (q, k, r, v), materialize_grads=True)
    buckets = plan_buckets(lengths, CPU)
    ours = packed_attention(q, k, v, 0.3, buckets, r)
    assert torch.allclose(ours, wanted, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, r, v)), grads, strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-12)
    assert torch.allclose(sdpa_attention(q, joined(k, r), v, 0.3, buckets), wanted, atol=1e-12)


@pytest.mark.parametrize("length", [BLOCK, BLOCK + 1, KEEP, KEEP + BLOCK + 3])
def test_long_sequences_go_by_blocks_with_and_without_kept_weights(length):
    lengths = [length, length - 2]
    q, k, r, v = inputs(lengths, 4, 2, 3)
    weight = torch.randn(sum(lengths), 4, 5, dtype=torch.float64)
    buckets = plan_buckets(lengths, CPU)
    found = []
    for attend in (
        lambda: packed_attention(q, k, v, 0.3, buckets, r),
        lambda: sdpa_attention(q, joined(k, r), v, 0.3, buckets),
    ):
        out = attend()
        found.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, r, v))))
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-11)


def test_in_bfloat16_the_error_is_that_of_the_format():
    lengths = [200, 190, 60]
    exact = inputs(lengths, 4, 4, 3)
    buckets = plan_buckets(lengths, CPU)
    scale = 1 / math.sqrt(9)
    wanted = packed_attention(exact[0], exact[1], exact[3], scale, buckets, exact[2])
    q, k, r, v = (x.detach().bfloat16() for x in exact)
    found = packed_attention(q, k, v, scale, buckets, r)
    assert (found - wanted).norm() / wanted.norm() < 1e-2


def test_neighbours_of_about_the_same_length_share_a_bucket():
    buckets = plan_buckets([40, 38, 12, 12, 3], CPU)
    assert [(b.start, b.end, b.count, b.length) for b in buckets] == [
        (0, 78, 2, 40),
        (78, 102, 2, 12),
        (102, 105, 1, 3),
    ]
    assert [b.slots_T is None for b in buckets] == [False, True, True]
