"""`Family`: everything an engine needs beyond what vLLM knows of a model family. No torch, no vllm here.

Adding a family takes one file beside this one and one entry in `rollout.families.registry`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rollout.routing import RoutingLayout


def no_patches() -> None:
    """vLLM serves the family as it is."""


@dataclass(frozen=True)
class Family:
    """One model family, for example `QWEN3_MOE`.

    model_type: transformers' name for it. routing_layout: of a transformers config, the shape of its routers'
    choices. patch_vllm: changes vLLM's classes of this family, once in every vLLM process.
    """

    model_type: str
    routing_layout: Callable[[Any], RoutingLayout]
    patch_vllm: Callable[[], None] = no_patches
