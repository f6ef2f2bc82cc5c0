"""Choices of an engine's routers: the shape and type in which they travel.

Choices are numpy arrays of shape (tokens, MoE layers, experts per token), in the order of the layers. The
largest value of their type stands where no engine told. Numbers from the count of routed experts on are
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
    """Shape and type of a model's choices, for example `RoutingLayout(layers=(0, 1), top_k=3, experts=12)`.

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
        """Choices of `tokens` tokens, all unknown."""
        shape = (tokens, len(self.layers), self.top_k)
        return np.full(shape, np.iinfo(self.dtype).max, self.dtype)


def joined_routing(parts: Sequence[Routing | None]) -> Routing | None:
    """Choices of pieces that follow each other; None where no piece has any."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None
