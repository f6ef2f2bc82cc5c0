"""Weights between the learner's modules and the published checkpoint format.

The learner keeps the experts of a layer as two stacked tensors; checkpoints on the Hub, and vLLM's
loaders, name each expert's projections on their own. Zero-computation experts have no weights in the
published checkpoints, nor in what goes to the engines. transformers' class allocates some all the same and
refuses a folder without them, so the folders written here hold zeros in their place; the readers (this file,
and the vLLM plugin) pass over them.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedConfig

from trainer.config import LoraConfig
from trainer.families.registry import FAMILIES, num_zero_experts
from trainer.lora import adapter_config, adapter_weights, adapters, merged

_STACKED = re.compile(r"^(.*\.experts)\.(gate_up_proj|down_proj)$")


def working_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a weight where the model's is `dtype`: a critic stays float32, and so do the weights that
    its family's record names."""
    full = name.startswith("critic.") or any(
        part in name for family in FAMILIES.values() for part in family.float32
    )
    return torch.float32 if full else dtype


def published_weights(
    model: nn.Module, dtype: torch.dtype, *, copy: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """The model's (name, tensor) pairs as a published checkpoint names them, cast to `dtype`, layer by layer.

    The only place that knows how the learner's modules hold their weights. copy: no tensor shares memory
    with the model. Adapters are merged into the weights. Of a sharded model every rank has to take all of
    them, for each is gathered when its turn comes.
    """
    for name, tensor in merged(model).items():
        stacked = _STACKED.match(name)
        if stacked is None:
            yield name, _whole(tensor.to(working_dtype(name, dtype), copy=copy))
            continue
        prefix, kind = stacked.groups()
        for expert, weight in enumerate(_whole(tensor.to(dtype, copy=copy))):
            if kind == "down_proj":
                yield f"{prefix}.{expert}.down_proj.weight", weight
            else:
                gate, up = weight.chunk(2, dim=0)
                yield f"{prefix}.{expert}.gate_proj.weight", gate
                yield f"{prefix}.{expert}.up_proj.weight", up


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from its ranks, all of which have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def snapshot(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights that engines load, as they are now, in host memory: the adapters where there are any, else
    the published weights. The model may change afterwards."""
    publish = adapter_weights if adapters(model) else published_weights
    return {name: t.cpu().contiguous() for name, t in publish(model, dtype, copy=True)}


def write_weights(tensors: dict[str, Tensor], path: Path) -> int:
    """Write tensors as one safetensors file, atomically. Returns its size in bytes.

    A file of that name is there and whole, or it is not there; an interrupted write leaves `*.partial`.
    """
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path.stat().st_size


def write_adapter(model: nn.Module, folder: Path, config: LoraConfig) -> None:
    """Write the adapters as PEFT does, in float32: adapter_config.json and adapter_model.safetensors."""
    write_adapter_config(model, folder, config)
    tensors = dict(adapter_weights(model, torch.float32))
    write_weights(tensors, folder / "adapter_model.safetensors")


def write_adapter_config(model: nn.Module, folder: Path, config: LoraConfig) -> None:
    """The first of the two."""
    folder.mkdir(parents=True, exist_ok=True)
    base: str = model.config.name_or_path  # pyright: ignore
    (folder / "adapter_config.json").write_text(
        json.dumps(adapter_config(config, base), indent=2), encoding="utf-8"
    )


def write_checkpoint(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors; transformers and vLLM both load the folder.

    The tokenizer is the caller's to add.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: PreTrainedConfig = model.config  # pyright: ignore[reportAssignmentType]
    config.architectures = [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    tensors = {name: t.contiguous() for name, t in published_weights(model, dtype)}
    family = FAMILIES.get(config.model_type)
    if family is not None:
        file = folder / "config.json"
        values = json.loads(file.read_text(encoding="utf-8")) | dict(family.published_config)
        file.write_text(json.dumps(values, indent=2), encoding="utf-8")
        tensors |= dict(_zero_expert_placeholders(model, num_zero_experts(config), dtype))
    write_weights(tensors, folder / "model.safetensors")


def read_checkpoint(model: nn.Module, folder: Path) -> None:
    """Load a folder in the published form (one safetensors file or several) into the model, in place.

    Of a sharded model only what this rank holds is read. Raises ValueError naming the first tensor that is
    missing or has another shape.
    """
    missing = dict(_targets(model))
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no dict)
                target = missing.pop(name, None)
                if target is None:
                    continue  # such as a zero-computation expert's placeholder
                value = tensors.get_slice(name)
                if tuple(value.get_shape()) != target.shape:
                    raise ValueError(
                        f"{file}: {name} has shape {tuple(value.get_shape())}, "
                        f"the config asks for {target.shape}"
                    )
                if target.held.numel():
                    target.held.copy_(value[target.first : target.first + len(target.held)])
    if missing:
        raise ValueError(f"{folder}: no weights for {min(missing)} ({len(missing)} missing in all)")


def published_shapes(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of each tensor that `read_checkpoint` asks a folder for."""
    for name, target in _targets(model):
        yield name, target.shape


@dataclass(frozen=True)
class _Target:
    """Memory for a published tensor of this shape: `held` are its rows from `first` on, all of them where the
    model is not sharded."""

    shape: tuple[int, ...]
    first: int
    held: Tensor


def _targets(model: nn.Module) -> Iterator[tuple[str, _Target]]:
    """By published name."""
    for name, tensor in model.state_dict().items():
        shape, first, held = tuple(tensor.shape), 0, tensor
        if isinstance(tensor, DTensor):
            # Parts of dimension 0, so rows that lie together (`trainer.parallel`).
            _, offset = compute_local_shape_and_global_offset(
                shape, tensor.device_mesh, tensor.placements
            )
            first, held = offset[0], tensor.to_local()
        stacked = _STACKED.match(name)
        if stacked is None:
            yield name, _Target(shape, first, held)
            continue
        prefix, kind = stacked.groups()
        for expert in range(shape[0]):
            here = first <= expert < first + len(held)
            rows = held[expert - first] if here else held.new_empty(0, *shape[2:])
            if kind == "down_proj":
                yield f"{prefix}.{expert}.down_proj.weight", _Target(shape[1:], 0, rows)
                continue
            half = (shape[1] // 2, *shape[2:])
            for projection, part in zip(
                ("gate_proj", "up_proj"), rows.tensor_split(2), strict=True
            ):
                yield f"{prefix}.{expert}.{projection}.weight", _Target(half, 0, part)


def _zero_expert_placeholders(
    model: nn.Module, count: int, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Zeros in the place of weights that zero-computation experts do not have."""
    for name, tensor in model.state_dict().items():
        stacked = _STACKED.match(name)
        if stacked is None or stacked.group(2) == "down_proj":
            continue
        first, both, hidden = tensor.shape
        for expert in range(first, first + count):
            for kind in ("gate_proj", "up_proj"):
                zeros = torch.zeros(both // 2, hidden, dtype=dtype)
                yield f"{stacked.group(1)}.{expert}.{kind}.weight", zeros
