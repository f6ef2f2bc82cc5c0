"""The safetensors file of one policy version: which tensors an engine stages between two of its steps."""

import math
from pathlib import Path

from safetensors import safe_open

# Some milliseconds' work, for vLLM's loaders are slow per tensor.
_SLICE_BYTES, _SLICE_TENSORS = 8 * 2**20, 32
# Bytes per element; a policy's weights have no other types.
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1, "BOOL": 1}


def slices_of(path: Path) -> list[list[str]]:
    """The names in a safetensors file, in its order, in slices of about one size."""
    slices: list[list[str]] = [[]]
    size = 0
    with safe_open(path, framework="np") as file:
        for name in file.offset_keys():
            tensor = file.get_slice(name)
            nbytes = math.prod(tensor.get_shape()) * _BYTES[tensor.get_dtype()]
            full = size + nbytes > _SLICE_BYTES or len(slices[-1]) == _SLICE_TENSORS
            if full and slices[-1]:
                slices.append([])
                size = 0
            slices[-1].append(name)
            size += nbytes
    return slices
