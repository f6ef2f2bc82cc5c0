"""The safetensors file of one policy version: which tensors an engine stages between two of its steps."""

import math
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from safetensors import safe_open

# Some milliseconds' work, for vLLM's loaders are slow per tensor; of a large policy a share of the whole.
_SLICE_BYTES, _SLICE_TENSORS, _SHARES = 8 * 2**20, 64, 64
_LAYER = re.compile(r".*?\blayers\.\d+\.")
# Bytes per element; a policy's weights have no other types.
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1, "BOOL": 1}


def slices_of(path: Path) -> list[list[str]]:
    """The names in a safetensors file, in its order, in slices of about one size."""
    with safe_open(path, framework="np") as file:
        sizes: list[tuple[str, int]] = []
        for name in file.offset_keys():
            tensor = file.get_slice(name)
            sizes.append((name, math.prod(tensor.get_shape()) * _BYTES[tensor.get_dtype()]))
    return cut(sizes)


def cut(sizes: Sequence[tuple[str, int]]) -> list[list[str]]:
    """Names of tensors, with their bytes, in slices that follow layers.

    A slice is small, but never below 1/64 of the whole: each costs a call to every worker, whatever is in it.
    Layers that fit share one; a large one is cut, and its last slice holds nothing of the next.
    """
    most_bytes = max(_SLICE_BYTES, math.ceil(sum(size for _, size in sizes) / _SHARES))
    most_tensors = max(_SLICE_TENSORS, math.ceil(len(sizes) / _SHARES))
    slices: list[list[str]] = [[]]
    held = 0
    for _, layer in groupby(sizes, key=lambda one: _layer_of(one[0])):
        tensors = list(layer)
        whole = held + sum(size for _, size in tensors)
        if whole > most_bytes or len(slices[-1]) + len(tensors) > most_tensors:
            held = math.inf  # not into what is begun
        for name, size in tensors:
            if slices[-1] and (held + size > most_bytes or len(slices[-1]) == most_tensors):
                slices.append([])
            if not slices[-1]:
                held = 0
            slices[-1].append(name)
            held += size
    return slices


def _layer_of(name: str) -> str:
    found = _LAYER.match(name)
    return found[0] if found else ""
