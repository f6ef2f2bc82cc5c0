"""Sizes of the policies that `dorado model init` makes, per model family.

`tiny` (2-3 M parameters) is for a laptop and the tests, `small` (LongCat-Flash: 116 M) for benchmarks. The
widths that vLLM's CPU kernels fix (kv_lora_rank 512, qk_rope_head_dim 64) are the published ones.
"""

from typing import Any, Literal

from transformers import LongcatFlashConfig, PreTrainedConfig, Qwen3MoeConfig

Family = Literal["longcat_flash", "qwen3_moe"]
Preset = Literal["tiny", "small"]

_LONGCAT: dict[Preset, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "num_layers": 2,
        "num_attention_heads": 4,
        "ffn_hidden_size": 256,
        "expert_ffn_hidden_size": 128,
        "n_routed_experts": 8,
        "zero_expert_num": 4,
        "moe_topk": 3,
        "routed_scaling_factor": 2.0,
        "q_lora_rank": 64,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 64,
        "head_dim": 64,
        "v_head_dim": 32,
        "max_position_embeddings": 4096,
        "initializer_range": 0.08,
    },
    "small": {
        "hidden_size": 512,
        "num_layers": 6,
        "num_attention_heads": 8,
        "ffn_hidden_size": 1024,
        "expert_ffn_hidden_size": 256,
        "n_routed_experts": 32,
        "zero_expert_num": 16,
        "moe_topk": 6,
        "routed_scaling_factor": 3.0,
        "q_lora_rank": 256,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "head_dim": 64,
        "v_head_dim": 64,
        "max_position_embeddings": 16384,
        "initializer_range": 0.04,
    },
}
_QWEN: dict[Preset, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 4096,
        "initializer_range": 0.08,
    },
    "small": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "num_experts": 24,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "max_position_embeddings": 16384,
        "initializer_range": 0.04,
    },
}
VOCAB_SIZE: dict[Preset, int] = {"tiny": 512, "small": 4096}


def model_config(family: Family, preset: Preset, vocab: dict[str, Any]) -> PreTrainedConfig:
    """The transformers config of a family at a preset size.

    `vocab` holds vocab_size, bos_token_id, eos_token_id and pad_token_id. rms_norm_eps is 1e-6: in
    LongCat-Flash transformers fixes the norms of the latents at 1e-6 whatever the config says, while
    vLLM follows the config; only at 1e-6 do the two agree.
    """
    common: dict[str, Any] = {**vocab, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    if family == "longcat_flash":
        return LongcatFlashConfig(**_LONGCAT[preset], **common)
    return Qwen3MoeConfig(**_QWEN[preset], **common)
