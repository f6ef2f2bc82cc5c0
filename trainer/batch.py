"""Packed batches: the samples of a micro-batch end to end in one stream, without any padding.

`trainer.micro_batches` says which samples go together and on which rank, `pack` lays them out. Positions
restart with each sample, and attention never crosses from one into another (`trainer.cpu.attention`). What
samples begin with in common may stand in the stream once (`trainer.shared_prefixes`).

Shapes: T tokens of the stream, A those of all samples, N policy tokens (those with loss_mask) in the order
of the samples, L layers with a router, K experts per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from trainer.cpu.attention import Layout, plan_buckets
from trainer.moe.router import UNKNOWN
from trainer.sample import TrainSample
from trainer.shared_prefixes import share, unshared

NOTHING = TrainSample("", "", (0,), (False,), (0.0,), (0.0,), (-1,))
# Share of the tokens that has to be saved: below it, finding the rows of attention costs more.
WORTH_SHARING = 1 / 16


@dataclass(frozen=True)
class PackedBatch:
    """One forward pass. source_N: where in the stream each policy token is predicted, before_N: where among
    all samples' tokens. target_N: the token.
    sample_N: its sample's index in the list that was packed. routing_TLK: the engine's expert choices, -1
    where it made none; None where no sample has any. path_A: where in the stream each sample's tokens are.
    versions: those that wrote a policy token of this batch, or of one that another rank computes in step with
    it. num_tokens: of the samples, 0 where there are none. samples, lengths, new: of each sample, in order,
    its index, its tokens, and those that no earlier one has."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    source_N: Tensor
    before_N: Tensor
    target_N: Tensor
    sample_N: Tensor
    rollout_logprobs_N: Tensor
    advantages_N: Tensor
    versions_N: Tensor
    routing_TLK: Tensor | None
    path_A: Tensor
    versions: frozenset[int]
    num_tokens: int
    samples: tuple[int, ...]
    lengths: tuple[int, ...]
    new: tuple[int, ...]
    layout: Layout

    @property
    def copies_T(self) -> Tensor | None:
        """Counts the samples that each token of the stream is of; None where each is of one."""
        if len(self.path_A) == len(self.input_ids_T):
            return None
        return torch.bincount(self.path_A, minlength=len(self.input_ids_T))


def pack(
    samples: Sequence[TrainSample],
    indices: Sequence[int],
    device: torch.device,
    beside: Sequence[int] = (),
    *,
    sharing: bool = False,
) -> PackedBatch:
    """Lay out the samples of these indices, longest first so that equal lengths are neighbours.

    No indices give one token from which nothing is predicted: a rank without work computes in step.
    beside: what the other ranks compute at the same time. sharing: what samples begin with in common is in
    the stream once, where that saves enough; their routing there is taken to be the same.
    """
    order = sorted(indices, key=lambda i: (-len(samples[i].token_ids), i))
    chosen = [samples[i] for i in order] or [NOTHING]
    lengths = [len(s.token_ids) for s in chosen]
    shared = share([s.token_ids for s in chosen]) if sharing else None
    if shared is None or sum(shared.new) > (1 - WORTH_SHARING) * sum(lengths):
        shared = unshared(lengths)

    def stream(values: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        return torch.cat([torch.tensor(v, dtype=dtype) for v in values])

    def only_new(values_A: Tensor) -> Tensor:
        """Picks the values of the stream's tokens from those of all samples' tokens."""
        parts = values_A.split(lengths)
        return torch.cat([p[len(p) - n :] for p, n in zip(parts, shared.new, strict=True)])

    all_ids_A = stream([s.token_ids for s in chosen], torch.long)
    mask_A = stream([s.loss_mask for s in chosen], torch.bool)
    path_A = stream(shared.paths, torch.long)
    before_N = mask_A.nonzero()[:, 0] - 1
    routing = _routing(chosen)
    batch = PackedBatch(
        input_ids_T=only_new(all_ids_A),
        position_ids_T=only_new(stream([range(n) for n in lengths], torch.long)),
        source_N=path_A[before_N],
        before_N=before_N,
        target_N=all_ids_A[mask_A],
        sample_N=stream([[i] * n for i, n in zip(order or [0], lengths, strict=True)], torch.long)[
            mask_A
        ],
        rollout_logprobs_N=stream([s.rollout_logprobs for s in chosen], torch.float32)[mask_A],
        advantages_N=stream([s.advantages for s in chosen], torch.float32)[mask_A],
        versions_N=stream([s.versions for s in chosen], torch.long)[mask_A],
        routing_TLK=None if routing is None else only_new(routing),
        path_A=path_A,
        num_tokens=sum(len(samples[i].token_ids) for i in indices),
        versions=frozenset(v for i in (*indices, *beside) for v in samples[i].policy_versions),
        samples=tuple(order or [0]),
        lengths=tuple(lengths),
        new=tuple(shared.new),
        layout=_layout(path_A, lengths, shared.new, device),
    )
    tensors = {k: v.to(device) for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **tensors)


def _layout(
    path_A: Tensor, lengths: Sequence[int], new: Sequence[int], device: torch.device
) -> Layout:
    """Attention's sequences: the samples that bring something new. Its rows are asked for at their new tokens
    alone, so those that begin like another are computed together from there on."""
    if sum(new) == sum(lengths):
        return Layout(plan_buckets(lengths, device))
    paths = path_A.split(list(lengths))
    kept = sorted((i for i, own in enumerate(new) if own), key=lambda i: lengths[i] > new[i])
    skips = [lengths[i] - new[i] for i in kept]
    buckets = plan_buckets([lengths[i] for i in kept], device, skips)
    rows_T = torch.empty(sum(new), dtype=torch.long)
    for i, end in zip(kept, accumulate(lengths[i] for i in kept), strict=True):
        rows_T[paths[i][-new[i] :]] = torch.arange(end - new[i], end)
    return Layout(buckets, torch.cat([paths[i] for i in kept]).to(device), rows_T.to(device))


def head(batch: PackedBatch, count: int) -> PackedBatch:
    """Cut a batch off behind the sample of its `count`-th policy token; whole where that is the last."""
    kept = 1 + (batch.samples.index(int(batch.sample_N[count - 1])) if count else 0)
    if kept == len(batch.samples):
        return batch
    lengths, new = batch.lengths[:kept], batch.new[:kept]
    inside = torch.isin(
        batch.sample_N, torch.tensor(batch.samples[:kept], device=batch.sample_N.device)
    )
    ends = {"A": sum(lengths), "T": sum(new), "TLK": sum(new), "N": int(inside.sum())}
    cut = {
        name: value[: ends[name.rsplit("_", 1)[1]]]
        for name, value in vars(batch).items()
        if isinstance(value, Tensor)
    }
    return replace(
        batch,
        **cut,
        num_tokens=sum(lengths),
        samples=batch.samples[:kept],
        lengths=lengths,
        new=new,
        layout=_layout(cut["path_A"], lengths, new, batch.path_A.device),
    )


def _routing(samples: Sequence[TrainSample]) -> Tensor | None:
    known = next((s.routing for s in samples if s.routing is not None), None)
    if known is None:
        return None
    parts = []
    for s in samples:
        if s.routing is None:
            parts.append(torch.full((len(s.token_ids), *known.shape[1:]), UNKNOWN))
        else:
            choices = torch.from_numpy(s.routing.astype("int64"))
            parts.append(choices.masked_fill(choices == np.iinfo(s.routing.dtype).max, UNKNOWN))
    return torch.cat(parts)
