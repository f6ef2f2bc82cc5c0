"""Sizes of the policies that `dorado model init` makes; each family's own values are in its record."""

from collections.abc import Mapping
from typing import cast

from transformers import AutoConfig, PreTrainedConfig

from trainer.families.family import Preset
from trainer.families.registry import FAMILIES

VOCAB_SIZE: dict[Preset, int] = {"tiny": 512, "small": 4096}


def model_config(family: str, preset: Preset, vocab: Mapping[str, object]) -> PreTrainedConfig:
    """The transformers config of a family at a preset size.

    `vocab` holds vocab_size, bos_token_id, eos_token_id and pad_token_id. rms_norm_eps is 1e-6: in
    LongCat-Flash transformers fixes the norms of the latents at 1e-6 whatever the config says, while
    vLLM follows the config; only at 1e-6 do the two agree.
    """
    values = {**FAMILIES[family].presets[preset], **vocab}
    config = AutoConfig.for_model(family, **values, rms_norm_eps=1e-6, tie_word_embeddings=False)
    return cast(PreTrainedConfig, config)
