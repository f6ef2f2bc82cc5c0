"""Holds the tensors of a published checkpoint against the model that its config.json describes.

In: a folder, and names and shapes out of its files' headers. Out: nothing, or a ValueError with one sentence.
The model is built without memory for its weights, so a folder of any size takes a second or two. Left out:
families that transformers does not know, and quantized checkpoints, whose tensors have other shapes (engines
of judges serve them).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from trainer.checkpoint_files import Stored
from trainer.families.registry import FAMILIES, num_experts, num_zero_experts
from trainer.policy import outline_policy
from trainer.weights import published_shapes

Shapes = Mapping[str, Sequence[int]]
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# Computed from the config; some older checkpoints have it all the same.
_COMPUTED = re.compile(r"rotary_emb\.|\.masked_bias$|\.attn\.bias$")


def check_fit(folder: Path, tensors: Mapping[str, Stored]) -> None:
    """Raise ValueError for the first tensor that has another shape than the config asks for, is missing, or
    lies in a layer and belongs to nothing in it."""
    try:
        config = AutoConfig.from_pretrained(str(folder))
    except Exception:  # a family of others; whoever loads it says what it is
        return
    if getattr(config, "quantization_config", None) is not None:
        return
    of_layers = _own_layers(config, tensors)
    if config.model_type in FAMILIES:
        _check_ours(folder, config, of_layers)
        return
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # its settings contradict each other, say: the learner's start names it
        return
    _check_others(folder, model, of_layers)


def _own_layers(
    config: PreTrainedConfig, tensors: Mapping[str, Stored]
) -> dict[str, tuple[int, ...]]:
    """The shapes without those of a layer beyond the config's, which predicts further tokens."""
    count = getattr(config, "num_layers", None) or getattr(config, "num_hidden_layers", math.inf)
    found: dict[str, tuple[int, ...]] = {}
    for name, stored in tensors.items():
        layer = _LAYER.search(name)
        if (layer is None or int(layer[1]) < count) and not name.startswith(("mtp.", "model.mtp.")):
            found[name] = stored.shape
    return found


def _check_ours(folder: Path, config: PreTrainedConfig, shapes: Shapes) -> None:
    wanted = dict(published_shapes(outline_policy(folder)))
    for name in sorted(wanted):
        if name not in shapes:
            raise _missing(folder, name)
        if tuple(shapes[name]) != wanted[name]:
            raise _misfit(folder, name, shapes[name], wanted[name])
    first, zero = num_experts(config), num_zero_experts(config)
    for name in sorted(shapes.keys() - wanted.keys()):
        expert = _EXPERT.search(name)
        # Zeros stand in some folders for experts without computation.
        if expert is None or not first <= int(expert[1]) < first + zero:
            _refuse_extra(folder, name)


def _check_others(folder: Path, model: PreTrainedModel, shapes: Shapes) -> None:
    """The same, by transformers' own account of what each tensor of a file becomes in its model."""
    wanted = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    several = {
        source: one.target_patterns
        for one in converters
        if len(one.target_patterns) > 1
        for source in one.source_patterns
    }
    parts: dict[str, list[str]] = defaultdict(list)
    there: set[str] = set()
    prefix = model.base_model_prefix
    meta = cast(dict[str, object], wanted)
    for name, shape in shapes.items():
        became, source = rename_source_key(name, renamings, converters, prefix, meta)
        if became not in wanted and name in wanted:
            became, source = name, None
        if became not in wanted and source not in several:
            ignored = model._keys_to_ignore_on_load_unexpected or ()
            if not any(re.search(one, name) for one in ignored):
                _refuse_extra(folder, name)
            continue
        if source is None:
            there.add(became)
            if tuple(shape) != wanted[became]:
                raise _misfit(folder, name, shape, wanted[became])
        elif source in several:
            first = several[source][0]
            there.update(became.replace(first, other) for other in several[source])
        else:
            parts[became].append(name)
    for became, names in parts.items():
        held, asked = sum(math.prod(shapes[one]) for one in names), math.prod(wanted[became])
        if held != asked:
            raise ValueError(
                f"{folder}: the {len(names)} tensors of {became}, such as {names[0]}, have {held} numbers, "
                f"and config.json asks for {asked}: one is missing, too many, or of another shape"
            )
    for name in sorted(wanted.keys() - there - parts.keys() - set(_not_needed(model))):
        raise _missing(folder, name)


def _not_needed(model: PreTrainedModel) -> Iterator[str]:
    """Weights that a checkpoint need not have: those that are another one, and what transformers makes."""
    yield from model.all_tied_weights_keys
    patterns = model._keys_to_ignore_on_load_missing or ()
    for name in model.state_dict():
        if any(re.search(one, name) for one in patterns):
            yield name


def _misfit(folder: Path, name: str, found: Sequence[int], wanted: Sequence[int]) -> ValueError:
    return ValueError(f"{folder}: {name} is {list(found)}, and config.json asks for {list(wanted)}")


def _missing(folder: Path, name: str) -> ValueError:
    return ValueError(
        f"{folder}: no file holds {name}, which config.json asks for: the folder is not whole, or its "
        "config.json is another model's"
    )


def _refuse_extra(folder: Path, name: str) -> None:
    if _LAYER.search(name) and not _COMPUTED.search(name):
        raise ValueError(
            f"{folder}: {name} belongs to nothing that config.json describes: the file or config.json is "
            "another model's"
        )
