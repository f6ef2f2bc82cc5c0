"""Dorado's additions to vLLM, in every vLLM process, by the entry point `vllm.general_plugins`.

1. The weight-transfer backend of `rollout.weight_transfer`, the KV connector of `rollout.cache_transfer`.
2. The patches of each model family in `rollout.families`.
3. On CPU, vLLM's processes sleep while they wait for each other. By default each spins for up to a second
   after its last message: with two engines and a learner on a few cores, most of the machine's time.
4. Adapters on CPU: the experts keep their kernel, and an adapter is two matrix products: vLLM copies it for
   every token, at ten times the cost and more.
5. Compiled on CPU: what an earlier start compiled is loaded, for any policy of the same shape.
6. On CPU, a request's tokens are handed out at its end, or when the core is asked
   (`rollout.vllm_final_outputs`).
7. Outputs of a rolling change of weights name the version that wrote them (`rollout.vllm_rolling_scheduler`).
8. vLLM's core ends when the process that started it is killed: it would keep its memory and its device.
"""

import copy
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rollout.families.registry import FAMILIES

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig


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
    for family in FAMILIES.values():
        family.patch_vllm()
    if current_platform.is_cpu():
        from rollout.vllm_rolling_scheduler import extend_core

        extend_core()
        _wait_without_spinning()
        _experts_without_adapters()
        _multiply_by_adapters()
        _load_compiled()
    _hand_out_when_asked()


def _hand_out_when_asked() -> None:
    from vllm.v1.engine.core import EngineCoreProc

    from rollout.vllm_final_outputs import HAND_OUT, hand_out

    setattr(EngineCoreProc, HAND_OUT, hand_out)


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


def _load_compiled() -> None:
    """Take up compiled code that is kept.

    vLLM finishes the loading of its own kind of compiled function alone, fails on torch's, and compiles anew;
    and it names what it keeps after the folder of the weights, which the code has nothing to do with.
    """
    from vllm.config import ModelConfig

    load: Any = torch.compiler.load_compiled_function
    compute_hash = ModelConfig.compute_hash

    def load_compiled_function(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        function = loaded._artifacts.compiled_fn
        if not hasattr(function, "finalize_loading"):
            function.finalize_loading = lambda config: None
        return loaded

    def compute_hash_of_shape(self: "ModelConfig") -> str:
        shape = copy.copy(self)
        shape.model = "policy"
        return compute_hash(shape)

    torch.compiler.load_compiled_function = load_compiled_function
    ModelConfig.compute_hash = compute_hash_of_shape
