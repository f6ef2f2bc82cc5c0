"""A learner's checkpoint as a Hugging Face folder, which transformers and vLLM load."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from trainer.checkpoint import named_weights, read_weights
from trainer.checkpoint_folder import MODEL
from trainer.config import Dtype
from trainer.lora import add_adapters, read_adapter_config
from trainer.policy import build_policy
from trainer.weights import write_adapter, write_checkpoint


def export_policy(checkpoint: Path, target: Path, dtype: Dtype) -> int:
    """Write the checkpoint's policy into `target`, tokenizer included. Returns its parameter count.

    `target` is there when it is whole. Raises CheckpointError, or OSError of the disk.
    """
    model = build_policy(AutoConfig.from_pretrained(checkpoint / MODEL), torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    adapter = checkpoint / MODEL / "adapter" / "adapter_config.json"
    lora = read_adapter_config(adapter) if adapter.exists() else None
    if lora is not None:
        add_adapters(model, lora)
    read_weights(checkpoint, named_weights(model))
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(checkpoint / MODEL, partial)
        write_checkpoint(model, partial, getattr(torch, dtype))
        if lora is not None:
            write_adapter(model, partial / "adapter", lora)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return parameters
