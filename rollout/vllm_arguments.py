"""Arguments and environment of vLLM's engines: all that is special about a CPU machine is here."""

import os
from typing import TYPE_CHECKING, Any

from rollout.compile_cache import CompileCache
from rollout.config import EngineConfig
from rollout.vllm_adapter import Adapters, adapter_arguments

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def prepare_process(config: EngineConfig, compiled: CompileCache | None = None) -> None:
    """Set what vLLM reads from the environment. Has to run before vllm is imported.

    compiled: where an engine on a CPU may compile.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if config.device == "cpu":
        os.environ |= cpu_variables(config.threads, config.kv_cache_gib)
        # vLLM sets these as it is configured, and torch reads them as it is imported, in the core's process
        # before that: code would be compiled for a number of threads, and differ from start to start.
        os.environ |= {
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
        }
        if not _compiles(config):
            # vLLM compiles small parts of its sampler all the same. That takes a C++ compiler, and one that
            # is killed in the middle leaves a torn library behind that no later start survives.
            os.environ["TORCH_COMPILE_DISABLE"] = "1"
        elif compiled is not None:
            os.environ.pop("TORCH_COMPILE_DISABLE", None)
            os.environ["VLLM_CACHE_ROOT"] = str(compiled.folder)


def cpu_variables(threads: int, kv_cache_gib: int) -> dict[str, str]:
    """Variables that vLLM on a CPU reads, engine or server."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        # Several engines would each bind the same first cores: leave the placing to the kernel.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }


def cpu_arguments(*, compiles: bool, latent_cache: bool) -> dict[str, Any]:
    """vLLM's arguments on a CPU, engine or server. latent_cache: attention keeps latents (MLA)."""
    arguments: dict[str, Any] = {
        "enforce_eager": not compiles,
        # Rotary embedding on CPU is wrong for the interleaved pairs of MLA (engine and learner
        # differ by up to 0.2 in a log-prob, without an error); the plain torch form is right.
        "compilation_config": {"custom_ops": ["-rotary_embedding"]},
    }
    if not latent_cache:
        # vLLM's own is 128: short contexts pay for all of their last block, a fifth of a step, and share
        # no prompt that is shorter. (A cache of MLA's kind has 16, whatever is asked for.)
        arguments["block_size"] = 32
    return arguments


def engine_arguments(
    checkpoint: str,
    config: EngineConfig,
    seed: int,
    *,
    move_cache: bool,
    adapters: Adapters | None = None,
) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs. move_cache: whether our KV connector is part of the engine."""
    from vllm.config import KVTransferConfig
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from rollout.cache_transfer import CONNECTOR
    from rollout.weight_transfer import BACKEND

    arguments: dict[str, Any] = {
        "model": checkpoint,
        "skip_tokenizer_init": True,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "seed": seed,
        # Log-probs of the distribution that tokens are drawn from, temperature included.
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": BACKEND},
        "generation_config": "vllm",
        "disable_log_stats": True,
    }
    if config.device == "cpu":
        latent = _has_latent_cache(checkpoint, config)
        arguments |= cpu_arguments(compiles=_compiles(config), latent_cache=latent)
        if not _is_parallel(config):
            # The worker in the core's process: one import of vLLM less, a third of an engine's start.
            # By its name vLLM takes one for unable to set OpenMP's threads; `prepare_process` has set them.
            arguments["distributed_executor_backend"] = UniProcExecutor
        arguments |= _rolling_arguments(config)
    if config.capture_routing:
        arguments |= _routing_arguments(config)
    if adapters is not None:
        arguments |= adapter_arguments(adapters)
    if move_cache:
        arguments["kv_transfer_config"] = {
            "kv_connector": CONNECTOR,
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
        }
    arguments |= config.vllm
    if isinstance(transfer := arguments.get("kv_transfer_config"), dict):
        arguments["kv_transfer_config"] = KVTransferConfig(**transfer)
    return arguments


def engine_config(arguments: dict[str, Any]) -> "VllmConfig":
    """vLLM's configuration from these arguments, with the prefix cache that it takes from latent attention.

    On a CPU without AMX vLLM turns it off for MLA. All that a context in the cache asks for is there: the
    gathering of it, attention over it, and the sum of both parts.
    """
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    asked = arguments.get("enable_prefix_caching", True)
    if config.device_config.device_type == "cpu" and config.model_config.use_mla and asked:
        config.cache_config.enable_prefix_caching = True
        config.scheduler_config.enable_chunked_prefill = True
    return config


def _rolling_arguments(config: EngineConfig) -> dict[str, Any]:
    """Arguments that let the weights of an engine on a CPU change request by request."""
    from rollout.vllm_rolling_scheduler import PREFILL_TOKENS

    tokens = config.prefill_tokens
    return {
        "worker_cls": "rollout.vllm_rolling_worker.RollingWorker",
        "scheduler_cls": "rollout.vllm_rolling_scheduler.RollingScheduler",
        "additional_config": {} if tokens is None else {PREFILL_TOKENS: tokens},
    }


def _routing_arguments(config: EngineConfig) -> dict[str, Any]:
    """Arguments that make the engine return the router's choices: vLLM's own option, where it can serve
    it."""
    if config.device == "cuda":
        return {"enable_return_routed_experts": True}
    return {
        "worker_cls": "rollout.vllm_routing_worker.RoutingWorker",
        "scheduler_cls": "rollout.vllm_routing_scheduler.RoutingScheduler",
    }


def moves_cache(config: EngineConfig) -> bool:
    """True if the KV cache of a moved request travels by our own connector.

    vLLM's own routing capture, on GPUs, wants to have computed every block in the cache itself.
    """
    if config.capture_routing and config.device == "cuda":
        return False
    return (
        config.move_cache == "shared_memory"
        and "kv_transfer_config" not in config.vllm
        and not _is_parallel(config)
    )


def rolls_over(config: EngineConfig, adapters: Adapters | None) -> bool:
    """True if running requests are moved to new weights a few at a time."""
    own = {"worker_cls", "scheduler_cls", "additional_config"}.isdisjoint(config.vllm)
    return config.update == "rolling" and config.device == "cpu" and adapters is None and own


def _compiles(config: EngineConfig) -> bool:
    """True if the model of an engine on a CPU is compiled."""
    return not config.vllm.get("enforce_eager", not config.compile)


def _has_latent_cache(checkpoint: str, config: EngineConfig) -> bool:
    """True if the policy's attention keeps latents in the cache (MLA)."""
    from vllm.transformers_utils.config import get_config

    own_code = bool(config.vllm.get("trust_remote_code", False))
    found = get_config(checkpoint, trust_remote_code=own_code)
    return hasattr(found.get_text_config(), "kv_lora_rank")


def _is_parallel(config: EngineConfig) -> bool:
    """True if an engine has several workers."""
    several = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return any(config.vllm.get(size, 1) != 1 for size in several)
