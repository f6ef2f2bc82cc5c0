"""The worker's half of routing capture on CPU: vLLM's routers and batches for `rollout.routing_capture`.

In: the choices, by the hooks that vLLM's routers call in every forward pass, and from the scheduler's half
what each request wants. Out: `StepRouting`, with the step's output. Left out on purpose: speculative decoding
and pipeline parallelism.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
    bind_routed_experts_capturer,
)
from vllm.v1.outputs import ModelRunnerOutput

from rollout.families.registry import routing_layout
from rollout.routing_capture import RoutingCapture, StepBatch
from rollout.vllm_rolling_worker import RollingWorker

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig


class _Routers(RoutingCapture):
    """The object that vLLM binds to its routers."""

    def capture(self, layer_id: int, topk_ids: torch.Tensor) -> None:
        """Called by a layer's router with its choices, shape (T, K)."""
        self.write(layer_id, topk_ids.numpy())

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Routers":
        """The model that takes new weights (`rollout.vllm_shadow`) is a copy; its routers tell this one."""
        return self


class RoutingWorker(RollingWorker):
    """The worker of engines on CPU with capture; an engine argument names it (`worker_cls`)."""

    def initialize_from_config(self, kv_cache_config: "KVCacheConfig") -> None:
        """Hook the routers, once the size of the KV cache is known."""
        super().initialize_from_config(kv_cache_config)
        (group,) = kv_cache_config.kv_cache_groups
        self.routers: Any = _Routers(
            routing_layout(self.model_config.hf_text_config),
            self.scheduler_config.max_num_batched_tokens,
            kv_cache_config.num_blocks * group.kv_cache_spec.block_size,
        )
        bind_routed_experts_capturer(self.model_runner.get_model(), self.routers)

    def sample_tokens(self, grammar_output: "GrammarOutput | None") -> Any:
        """The step's output with its routing; vLLM calls this after every forward pass."""
        state = self.model_runner.execute_model_state
        output = super().sample_tokens(grammar_output)
        if state is not None:
            assert isinstance(output, ModelRunnerOutput)
            step = state.scheduler_output
            batch = self._batch(step.num_scheduled_tokens, output)
            routing = self.routers.collect(step.aux_output_connector_metadata, batch)
            output.aux_output_connector_output = routing
        return output

    def _batch(self, scheduled: dict[str, int], output: ModelRunnerOutput) -> StepBatch:
        running = self.model_runner.input_batch
        table = running.block_table[0]
        scheduled_R = np.array([scheduled[id] for id in output.req_ids])
        return StepBatch(
            ids=output.req_ids,
            computed_R=running.num_computed_tokens_cpu[: len(output.req_ids)],
            scheduled_R=scheduled_R,
            slot_T=table.slot_mapping.gpu[: scheduled_R.sum()].numpy(),
            blocks_RB=table.get_numpy_array(),
            block_size=table.block_size,
            sampled_R=[bool(tokens) for tokens in output.sampled_token_ids],
        )
