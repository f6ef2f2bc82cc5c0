"""The families by name: in `FAMILIES`, the one place that lists them. No torch here."""

from typing import TYPE_CHECKING, Annotated

from trainer.families.family import Family
from trainer.families.longcat_flash import LONGCAT_FLASH
from trainer.families.qwen3_moe import QWEN3_MOE
from trainer.section import one_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LONGCAT_FLASH, QWEN3_MOE)}
# A setting that names a family.
FamilyName = Annotated[str, one_of(lambda: FAMILIES)]


def family_of(config: "PreTrainedConfig") -> Family:
    """The family of a transformers config. Raises KeyError where it is not in FAMILIES."""
    return FAMILIES[config.model_type]


def num_experts(config: "PreTrainedConfig") -> int:
    """Number of experts that have weights (zero-computation experts have none)."""
    return getattr(config, family_of(config).experts)


def num_zero_experts(config: "PreTrainedConfig") -> int:
    """Number of zero-computation experts; 0 where the family has none."""
    key = family_of(config).zero_experts
    return (getattr(config, key) or 0) if key else 0


def adapter_targets() -> tuple[str, ...]:
    """Names of the linear layers that can have an adapter in some family, plain projections first."""
    families = reversed(FAMILIES.values())
    return tuple(dict.fromkeys(name for family in families for name in family.adapter_targets))
