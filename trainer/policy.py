"""Loads a policy for the learner: transformers' model with some modules of the learner's own.

What is replaced, for LongCat-Flash and Qwen3-MoE: the experts (`trainer.moe.experts`), attention over packed
streams (`trainer.cpu.attention`, `trainer.mla`), the routers (`trainer.moe.router`), norms and dense layers
(`trainer.norm`, `trainer.swiglu`). Parameter names stay transformers'.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.longcat_flash import modeling_longcat_flash
from transformers.models.qwen3_moe import modeling_qwen3_moe

from trainer.cpu.attention import PACKED
from trainer.mla import PackedMLA
from trainer.moe.experts import GroupedExperts
from trainer.moe.router import LongcatRouter, QwenRouter
from trainer.norm import RMSNorm
from trainer.swiglu import DenseMLP
from trainer.weights import read_checkpoint

# Per family: where transformers' classes live, and what takes their place.
REPLACED: dict[str, tuple[ModuleType, dict[str, type]]] = {
    "longcat_flash": (
        modeling_longcat_flash,
        {
            "LongcatFlashExperts": GroupedExperts,
            "LongcatFlashMLA": PackedMLA,
            "LongcatFlashMLP": DenseMLP,
            "LongcatFlashRMSNorm": RMSNorm,
            "LongcatFlashTopkRouter": LongcatRouter,
        },
    ),
    "qwen3_moe": (
        modeling_qwen3_moe,
        {
            "Qwen3MoeExperts": GroupedExperts,
            "Qwen3MoeMLP": DenseMLP,
            "Qwen3MoeRMSNorm": RMSNorm,
            "Qwen3MoeTopKRouter": QwenRouter,
        },
    ),
}


@contextmanager
def own_modules() -> Iterator[None]:
    """Inside, transformers builds LongCat-Flash and Qwen3-MoE models with the modules of REPLACED."""
    before = [
        (module, name, getattr(module, name)) for module, own in REPLACED.values() for name in own
    ]
    try:
        for module, own in REPLACED.values():
            for name, ours in own.items():
                setattr(module, name, ours)
        yield
    finally:
        for module, name, stock in before:
            setattr(module, name, stock)


def build_policy(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model with random weights."""
    with own_modules():
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=PACKED)


def load_policy(checkpoint: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The policy of a local folder (or, for other families, of a Hub name), in `dtype`.

    Raises ValueError or OSError naming what is missing.
    """
    config = AutoConfig.from_pretrained(str(checkpoint))
    if config.model_type not in REPLACED:
        return AutoModelForCausalLM.from_pretrained(
            str(checkpoint), dtype=dtype, attn_implementation=PACKED
        )
    model = build_policy(config, dtype)
    read_checkpoint(model, _local(checkpoint))
    return model


def outline_policy(checkpoint: str | Path) -> PreTrainedModel:
    """The same policy without memory for its weights, which `fill_policy` reads once they have some.

    Raises ValueError for a family that is not in REPLACED.
    """
    config = AutoConfig.from_pretrained(str(checkpoint))
    if config.model_type not in REPLACED:
        raise ValueError(
            f"learner.ranks: a policy of the family {config.model_type} is trained on 1 rank; several "
            f"are for {' and '.join(REPLACED)}"
        )
    with torch.device("meta"):
        model = build_policy(config, torch.float32)
    # Computed from the config, and in no checkpoint.
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config)
    return model


def fill_policy(model: nn.Module, checkpoint: str | Path) -> None:
    """Read the weights of the checkpoint that `outline_policy` was given, of a sharded model its part."""
    read_checkpoint(model, _local(checkpoint))


def _local(checkpoint: str | Path) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(checkpoint)))
