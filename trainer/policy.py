"""Loads a policy for the learner: transformers' model with the learner's own expert layer."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from trainer.moe.experts import own_experts
from trainer.weights import read_checkpoint

OWN_EXPERTS = ("longcat_flash", "qwen3_moe")


def build_policy(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model with random weights."""
    with own_experts():
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def load_policy(checkpoint: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The policy of a local folder (or, for other families, of a Hub name), in `dtype`.

    Raises ValueError or OSError naming what is missing.
    """
    config = AutoConfig.from_pretrained(str(checkpoint))
    if config.model_type not in OWN_EXPERTS:
        return AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=dtype)
    model = build_policy(config, dtype)
    read_checkpoint(model, _local(checkpoint))
    return model


def _local(checkpoint: str | Path) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(checkpoint)))
