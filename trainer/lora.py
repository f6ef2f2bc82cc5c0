"""Low-rank adapters: W stays as it is, and W + (alpha / r) B A is what a layer computes with.

LoRA (arXiv 2106.09685), section 4.1: B is zero and A random at first, so training begins at the policy as it
is; the learner trains A and B, publishes them alone, and keeps only them of past versions. Adapters are on
linear layers (a family's `adapter_targets`); experts and the router have none.

Shapes: I inputs and O outputs of a layer, R rank.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import LoraConfig
from trainer.families.registry import adapter_targets

# What PEFT puts before the name of an adapted module.
_PEFT = "base_model.model."


class LoraLinear(nn.Linear):
    """x W^T + scale (x A^T) B^T. The weight is the base layer's own, frozen, under the same name."""

    def __init__(
        self, base: nn.Linear, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = scale
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        # As the paper's own code draws A: uniform, of variance 1 / (3 I).
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)

    def forward(self, input: Tensor) -> Tensor:
        """(…, I) -> (…, O)."""
        narrow = F.linear(input, self.lora_A) * self.scale
        return super().forward(input) + F.linear(narrow, self.lora_B)


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Freeze the model, and give every linear layer of a target's name an adapter, in place.

    The same model gets the same adapters, whatever its process has drawn before. Raises ValueError where the
    model has no linear layer of such a name.
    """
    model.requires_grad_(False)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = {name.rpartition(".")[2] for name in linears}
    for target in config.targets:
        if target not in names:
            there = ", ".join(name for name in adapter_targets() if name in names)
            raise ValueError(
                f"learner.lora.targets: this policy has no linear layer {target!r}, it has {there}"
            )
    generators: dict[torch.device, torch.Generator] = {}
    for name, linear in linears.items():
        parent, _, own = name.rpartition(".")
        if own in config.targets:
            device = linear.weight.device
            generator = generators.setdefault(device, torch.Generator(device).manual_seed(0))
            adapted = LoraLinear(linear, config.rank, config.alpha / config.rank, generator)
            setattr(model.get_submodule(parent), own, adapted)


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by name; none where the whole policy is trained."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}


def adapter_weights(
    model: nn.Module, dtype: torch.dtype, *, copy: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """The adapters' (name, tensor) pairs as PEFT names them, cast to `dtype`.

    copy: no tensor shares memory with the model.
    """
    for name, layer in adapters(model).items():
        yield f"{_PEFT}{name}.lora_A.weight", layer.lora_A.detach().to(dtype, copy=copy)
        yield f"{_PEFT}{name}.lora_B.weight", layer.lora_B.detach().to(dtype, copy=copy)


def adapter_config(config: LoraConfig, base: str) -> dict[str, Any]:
    """PEFT's adapter_config.json. base: folder or Hub name of the policy that the adapter is for."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(config.targets),
    }


def read_adapter_config(file: Path) -> LoraConfig:
    """Settings of the adapter in a file that `adapter_config` has filled."""
    said = json.loads(file.read_text(encoding="utf-8"))
    return LoraConfig(
        rank=said["r"], alpha=said["lora_alpha"], targets=tuple(said["target_modules"])
    )


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without adapters that computes the same: W + scale B A, in float32, in place of
    each adapted W, everything else as it is."""
    state = model.state_dict()
    for name, layer in adapters(model).items():
        a_RI, b_OR = state.pop(f"{name}.lora_A"), state.pop(f"{name}.lora_B")
        change_OI = layer.scale * (b_OR.float() @ a_RI.float())
        state[f"{name}.weight"] = state[f"{name}.weight"].float() + change_OI
    return state
