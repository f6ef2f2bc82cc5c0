"""Qwen3-MoE (arXiv 2505.09388): grouped-query attention, a softmax router, experts in every layer."""

from functools import cache

from trainer.families.family import Family, Replacements


@cache
def _replacements() -> Replacements:
    from transformers.models.qwen3_moe import modeling_qwen3_moe as stock

    from trainer.moe.experts import GroupedExperts
    from trainer.moe.router import SoftmaxRouter
    from trainer.norm import RMSNorm
    from trainer.swiglu import DenseMLP

    class QwenRouter(SoftmaxRouter, stock.Qwen3MoeTopKRouter):
        """Same parameters as transformers' class."""

    classes = {
        "Qwen3MoeExperts": GroupedExperts,
        "Qwen3MoeMLP": DenseMLP,
        "Qwen3MoeRMSNorm": RMSNorm,
        "Qwen3MoeTopKRouter": QwenRouter,
    }
    return Replacements(stock, classes)


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    replacements=_replacements,
    presets={
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
    },
    experts="num_experts",
    adapter_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
)
