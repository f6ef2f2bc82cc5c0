"""Routing capture inside an engine on CPU: a step's choices, sorted by request.

vLLM's own capture (`enable_return_routed_experts`) is part of a model runner that needs Triton. Here the
routers write a step's choices into an array (`write`), and after the step each request that has a new token
gets those that it wants (`collect`). `rollout.vllm_routing_worker` and `rollout.vllm_routing_scheduler` tie
this to vLLM's two processes.

Choices are also kept by the slot of the KV cache that the token's keys and values are in. There a request
finds those of a prompt computed in chunks, or in an earlier request whose prefix it shares.

Shapes: T tokens of a step, S slots of the KV cache, R requests, B blocks, L MoE layers, K experts per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rollout.routing import Routing, RoutingLayout


@dataclass(frozen=True)
class Wanted:
    """For each request of a step, its first token whose choices have not been handed out.

    loaded: of requests that begin, the tokens [start, end) whose keys and values come from elsewhere.
    """

    starts: dict[str, int]
    loaded: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class StepBatch:
    """The requests of a step, in the order of its rows.

    computed_R, scheduled_R: tokens before this step, and in it. slot_T: where each token's keys and values
    go. blocks_RB: each request's blocks of `block_size` slots. sampled_R: whether it has a new token.
    """

    ids: Sequence[str]
    computed_R: np.ndarray
    scheduled_R: np.ndarray
    slot_T: np.ndarray
    blocks_RB: np.ndarray
    block_size: int
    sampled_R: Sequence[bool]

    def slots(self, request: int, start: int, end: int) -> np.ndarray:
        """Where the keys and values of a request's tokens [start, end) are."""
        positions = np.arange(start, end)
        blocks = self.blocks_RB[request, positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size


@dataclass(frozen=True)
class StepRouting:
    """Choices of one step; a request's are `rows[start:end]`."""

    rows: Routing
    spans: dict[str, tuple[int, int]]


class RoutingCapture:
    """The choices of the present step, and of every slot of the KV cache."""

    def __init__(self, layout: RoutingLayout, max_tokens: int, num_slots: int) -> None:
        self._columns = {layer: column for column, layer in enumerate(layout.layers)}
        self._step_TLK = layout.unknown(max_tokens)
        self._cache_SLK = layout.unknown(num_slots)
        self._unknown = layout.unknown(1)

    def write(self, layer: int, choices_TK: np.ndarray) -> None:
        """A layer's choices for the step's tokens."""
        self._step_TLK[: len(choices_TK), self._columns[layer]] = choices_TK

    def collect(self, wanted: Wanted, batch: StepBatch) -> StepRouting:
        """Keep the step's choices, and give each request that has a new token those that it still wants."""
        for id, (start, end) in wanted.loaded.items():
            self._cache_SLK[batch.slots(batch.ids.index(id), start, end)] = self._unknown
        self._cache_SLK[batch.slot_T] = self._step_TLK[: len(batch.slot_T)]
        slots: list[np.ndarray] = []
        spans: dict[str, tuple[int, int]] = {}
        last = given = 0
        lengths = zip(batch.computed_R.tolist(), batch.scheduled_R.tolist(), strict=True)
        for request, (computed, scheduled) in enumerate(lengths):
            last += scheduled
            if not batch.sampled_R[request]:
                continue
            start = wanted.starts[batch.ids[request]]
            count = computed + scheduled - start
            if start < computed:
                slots.append(batch.slots(request, start, computed))
            slots.append(batch.slot_T[last - min(count, scheduled) : last])
            spans[batch.ids[request]] = (given, given + count)
            given += count
        return StepRouting(self._cache_SLK[np.concatenate([batch.slot_T[:0], *slots])], spans)
