"""Routing capture on CPU: the router's choices of every token, out of vLLM's worker.

vLLM's own capture (`enable_return_routed_experts`) is part of a model runner that needs Triton. On CPU this
worker takes its place and fills the same field: the routers' capture hooks, which vLLM calls in every forward
pass, write a step's choices into an array; after the step they are sorted by request and ride with the step's
output to `rollout.routing_delivery`.

Choices are also kept by the slot of the KV cache that the token's keys and values are in, so that a request
finds those of a prompt computed in chunks, or in an earlier request whose prefix it shares. Left out on
purpose: speculative decoding and pipeline parallelism.

Shapes: T tokens of a step, S slots of the KV cache, R requests, B blocks, L MoE layers, K experts per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
    bind_routed_experts_capturer,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker

from rollout.routing import RoutingLayout, routing_layout
from rollout.routing_delivery import StepRouting, Wanted

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig


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


class RoutingCapture:
    """The choices of the present step, and of every slot of the KV cache."""

    def __init__(self, layout: RoutingLayout, max_tokens: int, num_slots: int) -> None:
        self._columns = {layer: column for column, layer in enumerate(layout.layers)}
        self._step_TLK = layout.unknown(max_tokens)
        self._cache_SLK = layout.unknown(num_slots)
        self._unknown = layout.unknown(1)

    def capture(self, layer_id: int, topk_ids: torch.Tensor) -> None:
        """Called by the router of a layer: its choices for the step's tokens, shape (T, K)."""
        self._step_TLK[: len(topk_ids), self._columns[layer_id]] = topk_ids.numpy()

    def collect(self, wanted: Wanted, batch: StepBatch) -> StepRouting:
        """Keep the step's choices, and give each request that has a new token those that it still wants."""
        for request, id in enumerate(batch.ids):
            if id in wanted.loaded:
                self._cache_SLK[batch.slots(request, *wanted.loaded[id])] = self._unknown
        rows_TLK = self._step_TLK[: len(batch.slot_T)]
        self._cache_SLK[batch.slot_T] = rows_TLK
        parts = [rows_TLK[:0]]
        spans: dict[str, tuple[int, int]] = {}
        first = given = 0
        for request, id in enumerate(batch.ids):
            computed, scheduled = int(batch.computed_R[request]), int(batch.scheduled_R[request])
            if batch.sampled_R[request]:
                start = wanted.starts[id]
                if start >= computed:
                    part = rows_TLK[first + start - computed : first + scheduled]
                else:
                    part = self._cache_SLK[batch.slots(request, start, computed + scheduled)]
                parts.append(part)
                spans[id] = (given, given + len(part))
                given += len(part)
            first += scheduled
        return StepRouting(np.concatenate(parts), spans)


class RoutingWorker(CPUWorker):
    """vLLM's CPU worker with capture; an engine argument names it (`worker_cls`)."""

    def initialize_from_config(self, kv_cache_config: "KVCacheConfig") -> None:
        """Hook the routers, once the size of the KV cache is known."""
        super().initialize_from_config(kv_cache_config)
        (group,) = kv_cache_config.kv_cache_groups
        self.capture = RoutingCapture(
            routing_layout(self.model_config.hf_text_config),
            self.scheduler_config.max_num_batched_tokens,
            kv_cache_config.num_blocks * group.kv_cache_spec.block_size,
        )
        capture: Any = self.capture
        bind_routed_experts_capturer(self.model_runner.get_model(), capture)

    def sample_tokens(self, grammar_output: "GrammarOutput | None") -> Any:
        """The step's output with its routing; vLLM calls this after every forward pass."""
        state = self.model_runner.execute_model_state
        output = super().sample_tokens(grammar_output)
        if state is not None:
            assert isinstance(output, ModelRunnerOutput)
            batch = self._batch(state.scheduler_output.num_scheduled_tokens, output)
            wanted: Any = state.scheduler_output.aux_output_connector_metadata
            routing: Any = self.capture.collect(wanted, batch)
            output.aux_output_connector_output = routing
        return output

    def _batch(self, scheduled: dict[str, int], output: ModelRunnerOutput) -> StepBatch:
        running = self.model_runner.input_batch
        table = running.block_table[0]
        scheduled_R = np.array([scheduled[id] for id in output.req_ids])
        return StepBatch(
            ids=output.req_ids,
            computed_R=running.num_computed_tokens_cpu,
            scheduled_R=scheduled_R,
            slot_T=table.slot_mapping.gpu[: scheduled_R.sum()].numpy(),
            blocks_RB=table.get_numpy_array(),
            block_size=table.block_size,
            sampled_R=[bool(tokens) for tokens in output.sampled_token_ids],
        )
