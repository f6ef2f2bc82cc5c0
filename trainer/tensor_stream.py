"""Writes a safetensors file tensor by tensor: none has to be in memory but the one that is written."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint_files import Stored

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def num_bytes(stored: Stored) -> int:
    """Bytes of a tensor in its file."""
    count = 1
    for size in stored.shape:
        count *= size
    return count * DTYPES[stored.dtype].itemsize


def write_tensors(path: Path, tensors: Mapping[str, Stored], make: Callable[[str], Tensor]) -> None:
    """Write the file, asking `make(name)` for each tensor once, and flush it to the disk.

    Raises ValueError where a tensor is not as `tensors` says, OSError of the disk.
    """
    # Wide types first, as safetensors does: every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + num_bytes(tensors[name])
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            tensor, wanted = make(name), tensors[name]
            if NAMES[tensor.dtype] != wanted.dtype or tuple(tensor.shape) != wanted.shape:
                raise ValueError(f"{name} is {tensor.dtype} of shape {list(tensor.shape)}")
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
