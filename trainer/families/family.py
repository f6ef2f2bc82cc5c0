"""`Family`: everything the learner knows of a model family beyond what transformers knows. No torch here.

Adding a family takes one file beside this one and one entry in `trainer.families.registry`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

Preset = Literal["tiny", "small"]


class Unsupported(ValueError):
    """A policy that the learner would compute otherwise than its own code; the message is one sentence."""


@dataclass(frozen=True)
class Replacements:
    """The module of transformers' classes, and by class name what takes their place in it."""

    module: ModuleType
    classes: Mapping[str, type]


@dataclass(frozen=True)
class Family:
    """One model family, for example `QWEN3_MOE`.

    model_type: transformers' name for it. replacements: imports torch, so it is called when a model is built;
    the same classes every time. presets: config values of the policies that `dorado model init` makes, `tiny`
    (2-3 M parameters) for a laptop and the tests, `small` for benchmarks. experts: the config key that counts
    the experts with weights. zero_experts: the key that counts those without computation, "" for none.
    adapter_targets: linear layers outside the experts that can have an adapter. float32: parts of names of
    weights that stay float32 whatever the model's dtype. published_config: config keys that transformers does
    not write and vLLM needs.
    """

    model_type: str
    replacements: Callable[[], Replacements]
    presets: Mapping[Preset, Mapping[str, float]]
    experts: str
    adapter_targets: tuple[str, ...]
    zero_experts: str = ""
    float32: tuple[str, ...] = ()
    published_config: Mapping[str, bool | str] = field(default_factory=dict)
