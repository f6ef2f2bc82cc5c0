"""What Dorado adds to vLLM, in every vLLM process, by the entry point `vllm.general_plugins`.

1. The weight-transfer backend of `rollout.weight_transfer`, the KV connector of `rollout.cache_transfer`.
2. LongCat-Flash's loader passes over weights of zero-computation experts, which have none.
3. On CPU, LongCat-Flash's router in plain torch: vLLM's calls a CUDA kernel and a Triton kernel.
4. Routing capture gets the zero-computation experts that a token chose: vLLM's own hook comes after they
   are masked.
5. On CPU, vLLM's processes sleep while they wait for each other. By default each spins for up to a second
   after its last message: with two engines and a learner on a few cores, most of the machine's time.
6. Adapters: LongCat-Flash says which projections vLLM holds as one. On CPU the experts keep their kernel, and
   an adapter is two matrix products: vLLM copies it for every token, at ten times the cost and more.
7. vLLM's core ends when the process that started it is killed: it would keep its memory and its device.
"""

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def register() -> None:
    """Called by vLLM, possibly several times in one process."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    from rollout.cache_transfer import CONNECTOR
    from rollout.weight_transfer import BACKEND

    if BACKEND in WeightTransferEngineFactory._registry:
        return
    _end_with_parent()
    WeightTransferEngineFactory.register_engine(
        BACKEND, "rollout.weight_transfer", "FileWeightTransfer"
    )
    KVConnectorFactory.register_connector(CONNECTOR, "rollout.cache_transfer", "CacheTransfer")
    _skip_zero_experts_on_load()
    from vllm.model_executor.layers.fused_moe.router.zero_expert_router import ZeroExpertRouter

    ZeroExpertRouter.chosen_hook = None  # pyright: ignore[reportAttributeAccessIssue]
    ZeroExpertRouter.set_capture_fn = _capture_chosen
    _name_longcat_projections()
    if current_platform.is_cpu():
        ZeroExpertRouter._compute_routing = _zero_expert_routing
        _wait_without_spinning()
        _experts_without_adapters()
        _multiply_by_adapters()


def _end_with_parent() -> None:
    """vLLM ends its workers with its core, and its core with nothing."""
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith("EngineCore"):
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def _wait_without_spinning() -> None:
    """Poll the notification socket where vLLM would spin.

    A notification can be dropped (the sockets hold one message), so the poll returns after a
    millisecond and the caller looks at the shared memory again, as it would have done spinning.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    wait_idle = SpinCondition.wait

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() > self.last_read + self.busy_loop_s:
            wait_idle(self, timeout_ms)
        elif self.local_notify_socket in dict(self.poller.poll(timeout=1)):
            self.local_notify_socket.recv(copy=False)

    SpinCondition.wait = wait


def _name_longcat_projections() -> None:
    """Say of LongCat-Flash which two projections vLLM holds as one: adapters name them apart."""
    from vllm.model_executor.models.longcat_flash import LongcatFlashForCausalLM

    LongcatFlashForCausalLM.packed_modules_mapping = {
        **LongcatFlashForCausalLM.packed_modules_mapping,
        "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"],
    }


def _experts_without_adapters() -> None:
    """Let experts keep their CPU kernel where adapters are served.

    For adapters on experts vLLM takes a Triton kernel, whether experts are among the targets or not.
    """
    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
    from vllm.model_executor.layers.fused_moe.oracle.unquantized import (
        select_unquantized_moe_backend as select,
    )

    def select_plain(moe_config: "FusedMoEConfig") -> Any:
        return select(replace(moe_config, is_lora_enabled=False))

    method: Any = unquantized_fused_moe_method
    method.select_unquantized_moe_backend = select_plain


def _multiply_by_adapters() -> None:
    """Add B A x to the rows of y (T tokens) whose request is on the adapter, where there is room for one.

    vLLM's own form also takes a request on no adapter for one on the last, in a batch with others.
    """
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    add_any = PunicaWrapperCPU.add_lora_linear

    def add_lora_linear(
        self: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        if len(lora_a_stacked[0]) > 1:
            add_any(self, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **kwargs)
        elif not self.no_lora:
            scale_T1 = scale * (self.token_lora_indices >= 0).to(x.dtype)[:, None]
            parts = zip(lora_a_stacked, lora_b_stacked, y.split(output_slices, dim=-1), strict=True)
            for a, b, part in parts:
                part += (x @ a[0, 0].t()).mul_(scale_T1) @ b[0, 0].t()

    PunicaWrapperCPU.add_lora_linear = add_lora_linear


def _skip_zero_experts_on_load() -> None:
    from vllm.model_executor.models.longcat_flash import LongcatFlashForCausalLM

    load = LongcatFlashForCausalLM.load_weights

    def load_weights(self: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        routed = self.config.n_routed_experts
        return load(self, (pair for pair in weights if _expert_index(pair[0]) < routed))

    LongcatFlashForCausalLM.load_weights = load_weights


def _expert_index(name: str) -> int:
    found = _EXPERT.search(name)
    return int(found.group(1)) if found else -1


def _capture_chosen(self: Any, capture_fn: Callable[[torch.Tensor], None] | None) -> None:
    """Have the choices captured before zero experts are masked, by the router that knows them then.

    Raises ValueError where vLLM's own capture would return them in a type too small for zero experts.
    """
    from vllm.platforms import current_platform

    experts = len(self.e_score_correction_bias)
    if not current_platform.is_cpu() and self.num_logical_experts <= 256 < experts:
        raise ValueError(
            f"engine.capture_routing: on GPUs vLLM returns the choices of {self.num_logical_experts} routed "
            f"experts as uint8, which does not hold {experts} with those without computation; set it to false"
        )
    self.chosen_hook = capture_fn
    self._compute_routing = MethodType(_zero_expert_routing, self)


def _zero_expert_routing(
    self: Any,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    indices_type: torch.dtype | None,
    *,
    input_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over all experts in float32, top-k on score + bias, weights are the raw scores.

    LongCat-Flash report (arXiv 2509.01322), section 2.1. Zero experts return the token itself, so their
    share is hidden x (sum of their weights); then their places go to expert 0 with weight 0.
    """
    scores = torch.softmax(router_logits.float(), dim=-1)
    chosen = torch.topk(scores + self.e_score_correction_bias.data, self.top_k, dim=-1).indices
    if self.chosen_hook is not None:
        self.chosen_hook(chosen)
    weights = scores.gather(-1, chosen) * self.routed_scaling_factor
    zero = chosen >= self.num_logical_experts
    share = (weights * zero).sum(-1, keepdim=True)
    self._zero_expert_output = (hidden_states * share).to(hidden_states.dtype)
    ids = chosen.masked_fill(zero, 0).to(indices_type or torch.int32)
    return weights.masked_fill(zero, 0.0), ids
