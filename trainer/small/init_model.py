"""Makes a small policy from nothing: config, random weights, tokenizer, chat template, in one folder."""

from collections.abc import Iterable
from pathlib import Path

import torch

from trainer.families.family import Preset
from trainer.policy import build_policy
from trainer.small.presets import VOCAB_SIZE, model_config
from trainer.small.tokenizer import train_tokenizer
from trainer.weights import write_checkpoint


def init_checkpoint(
    folder: Path, *, family: str, preset: Preset, corpus: Iterable[str], seed: int
) -> int:
    """Write a Hugging Face checkpoint of a new policy into `folder`, and return its parameter count.

    corpus: texts of the environments that the policy is meant for; its tokenizer is trained on them.
    """
    tokenizer = train_tokenizer(corpus, VOCAB_SIZE[preset])
    config = model_config(
        family,
        preset,
        {
            "vocab_size": VOCAB_SIZE[preset],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_policy(config, torch.float32)
    write_checkpoint(model, folder, torch.float32)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())
