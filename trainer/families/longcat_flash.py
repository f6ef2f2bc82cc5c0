"""LongCat-Flash (arXiv 2509.01322): latent attention, zero-computation experts, a router with a bias."""

from functools import cache

from trainer.families.family import Family, Replacements


@cache
def _replacements() -> Replacements:
    from transformers.models.longcat_flash import modeling_longcat_flash as stock

    from trainer.mla import PackedMLA
    from trainer.moe.experts import GroupedExperts
    from trainer.moe.router import BiasedRouter
    from trainer.norm import RMSNorm
    from trainer.swiglu import DenseMLP

    class LongcatMLA(PackedMLA, stock.LongcatFlashMLA):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Same parameters as transformers' class."""

    class LongcatRouter(BiasedRouter, stock.LongcatFlashTopkRouter):
        """Same parameters as transformers' class."""

    classes = {
        "LongcatFlashExperts": GroupedExperts,
        "LongcatFlashMLA": LongcatMLA,
        "LongcatFlashMLP": DenseMLP,
        "LongcatFlashRMSNorm": RMSNorm,
        "LongcatFlashTopkRouter": LongcatRouter,
    }
    return Replacements(stock, classes)


LONGCAT_FLASH = Family(
    model_type="longcat_flash",
    replacements=_replacements,
    # vLLM's CPU kernels fix kv_lora_rank 512 and qk_rope_head_dim 64; they are the published ones.
    presets={
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
        # 116 M parameters.
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
    },
    experts="n_routed_experts",
    zero_experts="zero_expert_num",
    adapter_targets=(
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ),
    # As in the published checkpoints.
    float32=(".router.",),
    published_config={
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "zero_expert_type": "identity",
    },
)
