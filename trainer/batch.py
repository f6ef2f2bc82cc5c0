"""Packed batches: the samples of a micro-batch end to end in one stream, without any padding.

`plan_micro_batches` says which samples go together and on which rank, `pack` lays them out. Positions
restart with each sample, and attention never crosses from one into another (`trainer.cpu.attention`).

Shapes: T tokens of a micro-batch, N its policy tokens (those with loss_mask) in order of the stream, L layers
with a router, K experts per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.cpu.attention import Bucket, plan_buckets
from trainer.moe.router import UNKNOWN
from trainer.sample import TrainSample

NOTHING = TrainSample("", "", (0,), (False,), (0.0,), (0.0,), (-1,))


@dataclass(frozen=True)
class PackedBatch:
    """One forward pass. source_N: where in the stream each policy token is predicted. target_N: the token.
    sample_N: its sample's index in the list that was packed. routing_TLK: the engine's expert choices, -1
    where it made none; None where no sample has any. versions: those that wrote a policy token of this
    batch, or of one that another rank computes in step with it. num_tokens: of the samples, 0 where there
    are none."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    source_N: Tensor
    target_N: Tensor
    sample_N: Tensor
    rollout_logprobs_N: Tensor
    advantages_N: Tensor
    versions_N: Tensor
    routing_TLK: Tensor | None
    versions: frozenset[int]
    num_tokens: int
    buckets: tuple[Bucket, ...]


def plan_micro_batches(
    lengths: Sequence[int], max_tokens: int, ranks: int = 1
) -> list[list[list[int]]]:
    """Indices of the samples of each micro-batch of each rank, e.g. [5, 3, 4, 4] at 8 -> [[[0, 1], [2, 3]]].

    Every rank gets equally many micro-batches (a rank's may be empty), for they compute in step. Longest
    first, each sample to the emptiest micro-batch. Raises ValueError where a sample is too long.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(
            f"a sample of {max(lengths)} tokens does not fit a micro-batch of {max_tokens} "
            "(learner.micro_batch_tokens)"
        )
    count = ranks * max(1, -(-sum(lengths) // (max_tokens * ranks)))
    while (bins := _spread(lengths, max_tokens, count)) is None:
        count += ranks
    return [bins[rank::ranks] for rank in range(ranks)]


def _spread(lengths: Sequence[int], max_tokens: int, count: int) -> list[list[int]] | None:
    """Greedy balance over `count` micro-batches; None where it does not fit."""
    bins: list[list[int]] = [[] for _ in range(count)]
    full = [0] * count
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        emptiest = full.index(min(full))
        full[emptiest] += lengths[index]
        if full[emptiest] > max_tokens:
            return None
        bins[emptiest].append(index)
    return bins


def pack(
    samples: Sequence[TrainSample],
    indices: Sequence[int],
    device: torch.device,
    beside: Sequence[int] = (),
) -> PackedBatch:
    """Lay out the samples of these indices, longest first so that equal lengths are neighbours.

    No indices give one token from which nothing is predicted: a rank without work computes in step.
    beside: what the other ranks compute at the same time.
    """
    order = sorted(indices, key=lambda i: (-len(samples[i].token_ids), i))
    chosen = [samples[i] for i in order] or [NOTHING]
    lengths = [len(s.token_ids) for s in chosen]

    def stream(values: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        return torch.cat([torch.tensor(v, dtype=dtype) for v in values])

    input_ids = stream([s.token_ids for s in chosen], torch.long)
    mask = stream([s.loss_mask for s in chosen], torch.bool)
    batch = PackedBatch(
        input_ids_T=input_ids,
        position_ids_T=stream([range(n) for n in lengths], torch.long),
        source_N=mask.nonzero()[:, 0] - 1,
        target_N=input_ids[mask],
        sample_N=stream([[i] * n for i, n in zip(order or [0], lengths, strict=True)], torch.long)[
            mask
        ],
        rollout_logprobs_N=stream([s.rollout_logprobs for s in chosen], torch.float32)[mask],
        advantages_N=stream([s.advantages for s in chosen], torch.float32)[mask],
        versions_N=stream([s.versions for s in chosen], torch.long)[mask],
        routing_TLK=_routing(chosen),
        num_tokens=sum(len(samples[i].token_ids) for i in indices),
        versions=frozenset(v for i in (*indices, *beside) for v in samples[i].policy_versions),
        buckets=plan_buckets(lengths, device),
    )
    tensors = {k: v.to(device) for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **tensors)


def head(batch: PackedBatch, count: int) -> PackedBatch:
    """Cut a batch off behind the sample of its `count`-th policy token; whole where that is the last."""
    starts = (batch.position_ids_T == 0).nonzero()[:, 0].tolist()
    ends = [*starts[1:], len(batch.input_ids_T)]
    last = int(batch.source_N[count - 1]) if count else 0
    kept = sum(start <= last for start in starts)
    end = ends[kept - 1]
    if end == ends[-1]:
        return batch
    tokens = int((batch.source_N < end).sum())
    cut = {
        name: value[:end] if name.endswith(("_T", "_TLK")) else value[:tokens]
        for name, value in vars(batch).items()
        if isinstance(value, Tensor)
    }
    lengths = [e - s for s, e in zip(starts[:kept], ends, strict=False)]
    buckets = plan_buckets(lengths, batch.input_ids_T.device)
    return replace(batch, **cut, num_tokens=end, buckets=buckets)


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
