"""The learner's expert layer: tokens sorted by expert, one product per expert on a contiguous slice.

Takes the place of transformers' expert classes of LongCat-Flash and Qwen3-MoE while a model is built
(`own_experts`). Zero-computation experts (LongCat-Flash report, section 2.1: E_i(x) = x for i > N) have
no weights here and cost one multiplication per token.

Shapes: T tokens, K experts per token, N routed experts, D model width, F expert width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.longcat_flash import modeling_longcat_flash
from transformers.models.qwen3_moe import modeling_qwen3_moe

from trainer.weights import routed_experts


class SortedExperts(nn.Module):
    """Routed experts with weights `gate_up_proj_N2FD` and `down_proj_NDF`, then identity experts."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.num_experts = routed_experts(config)
        width, hidden = config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden, width))
        self.act = ACT2FN[config.hidden_act]
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=config.initializer_range)

    def forward(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Weighted sum of each token's experts, shape (T, D)."""
        top_k = experts_TK.shape[1]
        flat = experts_TK.reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=self.num_experts)[: self.num_experts].tolist()
        order = order[: sum(counts)]
        token = order // top_k
        parts = []
        for expert, x in enumerate(x_TD[token].split(counts)):
            gate, up = F.linear(x, self.gate_up_proj[expert]).chunk(2, dim=-1)
            parts.append(F.linear(self.act(gate) * up, self.down_proj[expert]))
        weight = weights_TK.reshape(-1)[order, None]
        out_TD = torch.zeros_like(x_TD)
        out_TD = out_TD.index_add(0, token, (torch.cat(parts) * weight).to(out_TD.dtype))
        identity_T1 = (weights_TK * (experts_TK >= self.num_experts)).sum(-1, keepdim=True)
        return out_TD + x_TD * identity_T1.to(x_TD.dtype)


@contextmanager
def own_experts() -> Iterator[None]:
    """Inside, transformers builds LongCat-Flash and Qwen3-MoE models with SortedExperts."""
    longcat, qwen = modeling_longcat_flash.LongcatFlashExperts, modeling_qwen3_moe.Qwen3MoeExperts
    modeling_longcat_flash.LongcatFlashExperts = SortedExperts  # pyright: ignore
    modeling_qwen3_moe.Qwen3MoeExperts = SortedExperts  # pyright: ignore
    try:
        yield
    finally:
        modeling_longcat_flash.LongcatFlashExperts = longcat  # pyright: ignore
        modeling_qwen3_moe.Qwen3MoeExperts = qwen  # pyright: ignore
