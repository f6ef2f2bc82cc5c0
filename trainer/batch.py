"""Packed batches: samples as tensors, without padding to the longest.

`pack` lays samples end to end into rows of at most `row_tokens`; positions restart with each sample and
attention never crosses from one into another.

Shapes: R rows, L row length, N policy tokens of the batch (those with loss_mask), in row order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.sample import TrainSample


@dataclass(frozen=True)
class PackedBatch:
    """Rows for one forward pass, and for each policy token where its prediction is read.

    sample_N: index of each policy token's sample in the list that was packed.
    """

    input_ids_RL: Tensor
    position_ids_RL: Tensor
    segment_ids_RL: Tensor
    row_N: Tensor
    column_N: Tensor
    target_N: Tensor
    sample_N: Tensor
    rollout_logprobs_N: Tensor
    advantages_N: Tensor
    versions_N: Tensor

    def attention_mask(self) -> Tensor:
        """Boolean (R, 1, L, L): causal, and within one sample only. Padding attends to itself."""
        length = self.segment_ids_RL.shape[1]
        same = self.segment_ids_RL[:, :, None] == self.segment_ids_RL[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        return (same & causal)[:, None]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        return PackedBatch(**{name: value.to(device) for name, value in vars(self).items()})


def plan_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """First-fit decreasing: indices of the samples of each row, e.g. [5, 3, 4] in rows of 8 -> [[0, 1], [2]].

    Raises ValueError where a sample is longer than a row.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[index] > row_tokens:
            raise ValueError(
                f"a sample of {lengths[index]} tokens does not fit a row of {row_tokens} "
                "(learner.row_tokens)"
            )
        for row, room in enumerate(free):
            if lengths[index] <= room:
                rows[row].append(index)
                free[row] -= lengths[index]
                break
        else:
            rows.append([index])
            free.append(row_tokens - lengths[index])
    return rows


def pack(samples: Sequence[TrainSample], rows: Sequence[Sequence[int]]) -> PackedBatch:
    """Lay out the samples of the given rows; rows are padded to the longest of them."""
    length = max(sum(len(samples[i].token_ids) for i in row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    # Each padding position is a segment of its own, so that it attends to itself alone.
    segments = -1 - torch.arange(length).repeat(len(rows), 1)
    where: list[tuple[int, int, int, int]] = []
    values: list[tuple[float, float, int]] = []
    for r, row in enumerate(rows):
        start = 0
        for index in row:
            sample = samples[index]
            end = start + len(sample.token_ids)
            ids[r, start:end] = torch.tensor(sample.token_ids)
            positions[r, start:end] = torch.arange(end - start)
            segments[r, start:end] = index
            for t, wanted in enumerate(sample.loss_mask):
                if wanted:
                    where.append((r, start + t - 1, sample.token_ids[t], index))
                    values.append(
                        (sample.rollout_logprobs[t], sample.advantages[t], sample.versions[t])
                    )
            start = end
    row_N, column_N, target_N, sample_N = torch.tensor(where, dtype=torch.long).reshape(-1, 4).T
    logprobs, advantages, versions = zip(*values, strict=True) if values else ((), (), ())
    return PackedBatch(
        input_ids_RL=ids,
        position_ids_RL=positions,
        segment_ids_RL=segments,
        row_N=row_N,
        column_N=column_N,
        target_N=target_N,
        sample_N=sample_N,
        rollout_logprobs_N=torch.tensor(logprobs, dtype=torch.float32),
        advantages_N=torch.tensor(advantages, dtype=torch.float32),
        versions_N=torch.tensor(versions, dtype=torch.long),
    )
