"""Which experts an engine's routers chose: the shape and type in which the choices travel.

Choices are numpy arrays of shape (tokens, MoE layers, experts per token), in the order of the layers. The
largest value of their type means that no engine told. Numbers from the count of routed experts on are
zero-computation experts. Left out on purpose: the experts' weights, which the learner computes itself, since
its gradient goes through them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Routing = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class RoutingLayout:
    """What a model's choices look like, for example `RoutingLayout(layers=(0, 1), top_k=3, experts=12)`.

    layers: the model's layers that have a router. experts: how many there are to choose from, those without
    computation included.
    """

    layers: tuple[int, ...]
    top_k: int
    experts: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds every expert and one value more, for unknown."""
        return np.min_scalar_type(self.experts)

    def unknown(self, tokens: int) -> Routing:
        """Choices of so many tokens that nobody knows."""
        shape = (tokens, len(self.layers), self.top_k)
        return np.full(shape, np.iinfo(self.dtype).max, self.dtype)


def routing_layout(config: Any) -> RoutingLayout:
    """The layout of a transformers config. Raises ValueError for a family whose routers are not known."""
    if config.model_type == "longcat_flash":
        experts = config.n_routed_experts + (config.zero_expert_num or 0)
        return RoutingLayout(tuple(range(config.num_layers)), config.moe_topk, experts)
    if config.model_type == "qwen3_moe":
        sparse = tuple(
            layer
            for layer in range(config.num_hidden_layers)
            if layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0
        )
        return RoutingLayout(sparse, config.num_experts_per_tok, config.num_experts)
    raise ValueError(
        f"engine.capture_routing: the routers of a model of type {config.model_type!r} are not known, "
        "only those of 'longcat_flash' and 'qwen3_moe'; set it to false"
    )


def joined_routing(parts: Sequence[Routing | None]) -> Routing | None:
    """Choices of pieces that follow each other; None where no piece has any."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None
