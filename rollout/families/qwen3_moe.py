"""Qwen3-MoE in vLLM: where its routers are."""

from typing import Any

from rollout.families.family import Family
from rollout.routing import RoutingLayout


def _routing_layout(config: Any) -> RoutingLayout:
    sparse = tuple(
        layer
        for layer in range(config.num_hidden_layers)
        if layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0
    )
    return RoutingLayout(sparse, config.num_experts_per_tok, config.num_experts)


QWEN3_MOE = Family("qwen3_moe", _routing_layout)
