"""The families by name: in `FAMILIES`, the one place that lists them."""

from typing import Any

from rollout.families.family import Family
from rollout.families.longcat_flash import LONGCAT_FLASH
from rollout.families.qwen3_moe import QWEN3_MOE
from rollout.routing import RoutingLayout

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LONGCAT_FLASH, QWEN3_MOE)}


def routing_layout(config: Any) -> RoutingLayout:
    """The layout of a transformers config. Raises ValueError for a family whose routers are not known."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"engine.capture_routing: the routers of a model of type {config.model_type!r} are not known, "
            f"only those of {' and '.join(map(repr, FAMILIES))}; set it to false"
        )
    return family.routing_layout(config)
