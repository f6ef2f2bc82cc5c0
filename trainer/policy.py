"""Loads a policy for the learner: transformers' model with some modules of the learner's own.

A family's record (`trainer.families`) says which: the experts (`trainer.moe.experts`), attention over packed
streams (`trainer.attention_interface`, `trainer.mla`), the routers (`trainer.moe.router`), norms and dense
layers (`trainer.norm`, `trainer.swiglu`). Parameter names stay transformers'. A causal language model of a
family without a record keeps transformers' modules.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from trainer.attention_interface import PACKED
from trainer.families.family import Family, Unsupported
from trainer.families.registry import FAMILIES
from trainer.weights import read_checkpoint


@contextmanager
def own_modules(family: Family) -> Iterator[None]:
    """Inside, transformers builds models of this family with the learner's modules."""
    replacements = family.replacements()
    stock = {name: getattr(replacements.module, name) for name in replacements.classes}
    try:
        for name, ours in replacements.classes.items():
            setattr(replacements.module, name, ours)
        yield
    finally:
        for name, theirs in stock.items():
            setattr(replacements.module, name, theirs)


def build_policy(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model with random weights."""
    family = FAMILIES.get(config.model_type)
    with nullcontext() if family is None else own_modules(family):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=PACKED)


def load_policy(checkpoint: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The policy of a local folder (or, for other families, of a Hub name), in `dtype`.

    Raises ValueError or OSError naming what is missing, and Unsupported for quantized weights.
    """
    config = _config_of(checkpoint)
    if config.model_type not in FAMILIES:
        return AutoModelForCausalLM.from_pretrained(
            str(checkpoint), dtype=dtype, attn_implementation=PACKED
        )
    model = build_policy(config, dtype)
    read_checkpoint(model, _local(checkpoint))
    return model


def outline_policy(checkpoint: str | Path) -> PreTrainedModel:
    """The same policy without memory for its weights; `fill_policy` reads them once there is memory.

    Raises ValueError for a family that is not in FAMILIES, and Unsupported for quantized weights.
    """
    config = _config_of(checkpoint)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"learner.ranks: a policy of the family {config.model_type} is trained on 1 rank; several "
            f"are for {' and '.join(FAMILIES)}"
        )
    with torch.device("meta"):
        model = build_policy(config, torch.float32)
    # Computed from the config, and in no checkpoint.
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config)
    return model


def fill_policy(model: nn.Module, checkpoint: str | Path) -> None:
    """Read the weights of the checkpoint that `outline_policy` was given; of a sharded model only this
    rank's."""
    read_checkpoint(model, _local(checkpoint))


def _config_of(checkpoint: str | Path) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(str(checkpoint))
    if getattr(config, "quantization_config", None):
        raise Unsupported(
            f"{checkpoint} is quantized (quantization_config in config.json), and a policy is trained with "
            "whole weights: take the checkpoint that it was made from"
        )
    return config


def _local(checkpoint: str | Path) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(checkpoint)))
