"""LongCat-Flash in vLLM: its routers, and what vLLM's classes for it lack.

1. The loader passes over weights of zero-computation experts, which have none.
2. On CPU the router is plain torch: vLLM's calls a CUDA kernel and a Triton kernel.
3. Routing capture gets the zero-computation experts that a token chose: vLLM's own hook comes after they are
   masked.
4. Adapters: vLLM holds two projections as one, and is told which.
"""

import re
from collections.abc import Callable, Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any

from rollout.families.family import Family
from rollout.routing import RoutingLayout

if TYPE_CHECKING:
    import torch

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def _routing_layout(config: Any) -> RoutingLayout:
    experts = config.n_routed_experts + (config.zero_expert_num or 0)
    return RoutingLayout(tuple(range(config.num_layers)), config.moe_topk, experts)


def _patch_vllm() -> None:
    from vllm.model_executor.layers.fused_moe.router.zero_expert_router import ZeroExpertRouter
    from vllm.platforms import current_platform

    _skip_zero_experts_on_load()
    _name_projections()
    ZeroExpertRouter.chosen_hook = None  # pyright: ignore[reportAttributeAccessIssue]
    ZeroExpertRouter.set_capture_fn = _capture_chosen
    if current_platform.is_cpu():
        ZeroExpertRouter._compute_routing = _zero_expert_routing


def _name_projections() -> None:
    """Tell vLLM which two projections it holds as one: adapters name them apart."""
    from vllm.model_executor.models.longcat_flash import LongcatFlashForCausalLM

    LongcatFlashForCausalLM.packed_modules_mapping = {
        **LongcatFlashForCausalLM.packed_modules_mapping,
        "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"],
    }


def _skip_zero_experts_on_load() -> None:
    from vllm.model_executor.models.longcat_flash import LongcatFlashForCausalLM

    load = LongcatFlashForCausalLM.load_weights

    def load_weights(self: Any, weights: "Iterable[tuple[str, torch.Tensor]]") -> set[str]:
        routed = self.config.n_routed_experts
        return load(self, (pair for pair in weights if _expert_index(pair[0]) < routed))

    LongcatFlashForCausalLM.load_weights = load_weights


def _expert_index(name: str) -> int:
    found = _EXPERT.search(name)
    return int(found.group(1)) if found else -1


def _capture_chosen(self: Any, capture_fn: "Callable[[torch.Tensor], None] | None") -> None:
    """Have the choices captured before zero experts are masked, by the router that knows them then.

    Raises ValueError where vLLM's own capture would return them in a type too small for zero experts.
    """
    from vllm.platforms import current_platform

    experts = len(self.e_score_correction_bias)
    if not current_platform.is_cpu() and self.num_logical_experts <= 256 < experts:
        raise ValueError(
            f"engine.capture_routing: on GPUs vLLM returns the choices of {self.num_logical_experts} routed "
            f"experts as uint8, which does not hold {experts} with those without computation; set it to false"
        )
    self.chosen_hook = capture_fn
    self._compute_routing = MethodType(_zero_expert_routing, self)


def _zero_expert_routing(
    self: Any,
    hidden_states: "torch.Tensor",
    router_logits: "torch.Tensor",
    indices_type: "torch.dtype | None",
    *,
    input_ids: "torch.Tensor | None" = None,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Softmax over all experts in float32, top-k on score + bias, weights are the raw scores.

    LongCat-Flash report (arXiv 2509.01322), section 2.1. Zero experts return the token itself, so their
    share is hidden x (sum of their weights); then their places go to expert 0 with weight 0.
    """
    import torch

    scores = torch.softmax(router_logits.float(), dim=-1)
    chosen = torch.topk(scores + self.e_score_correction_bias.data, self.top_k, dim=-1).indices
    if self.chosen_hook is not None:
        self.chosen_hook(chosen)
    weights = scores.gather(-1, chosen) * self.routed_scaling_factor
    zero = chosen >= self.num_logical_experts
    share = (weights * zero).sum(-1, keepdim=True)
    self._zero_expert_output = (hidden_states * share).to(hidden_states.dtype)
    ids = chosen.masked_fill(zero, 0).to(indices_type or torch.int32)
    return weights.masked_fill(zero, 0.0), ids


LONGCAT_FLASH = Family("longcat_flash", _routing_layout, _patch_vllm)
