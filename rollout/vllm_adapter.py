"""Adapters (LoRA, arXiv 2106.09685) in a vLLM engine: one at a time, which every request runs on.

A policy version is an adapter then. It comes as one safetensors file of tensors under PEFT's names, and takes
the place of the one before under the same id, so that requests in progress go on with it. Left out: several
adapters at once, though vLLM could serve them, for an engine serves one version at a time.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

# What vLLM calls the adapter, whatever its version.
_NAME = "policy"
_ID = 1


@dataclass(frozen=True)
class Adapters:
    """Adapter settings that an engine knows beforehand, e.g. Adapters(16, 32.0, ("q_proj", "o_proj")).

    A layer whose name ends in one of `targets` computes with W + (alpha / rank) B A.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


def adapter_arguments(adapters: Adapters) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs: room for one adapter of this shape."""
    from vllm.config.lora import MaxLoRARanks

    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": min(rank for rank in get_args(MaxLoRARanks) if rank >= adapters.rank),
        "lora_target_modules": list(adapters.targets),
    }


def on_adapter() -> "LoRARequest":
    """Return the argument of a request that runs on the adapter. It names no folder: the adapter is there
    already."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(_NAME, _ID, _NAME)


@contextmanager
def loading(file: Path, adapters: Adapters) -> Iterator["LoRARequest"]:
    """Yield the request that replaces the adapter by a file's, while the context is open.

    vLLM reads adapters from a folder as PEFT writes it: for the time being, there is one.
    """
    from vllm.lora.request import LoRARequest

    config = {
        "peft_type": "LORA",
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "target_modules": list(adapters.targets),
    }
    with TemporaryDirectory(prefix="dorado-adapter-") as folder:
        (Path(folder) / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        (Path(folder) / "adapter_model.safetensors").symlink_to(file.resolve())
        yield LoRARequest(_NAME, _ID, folder, load_inplace=True)
