"""Checks weight files of a published checkpoint by their headers: whole, all there, of the config's sizes.

In: a folder with config.json and *.safetensors. Out: nothing, or a ValueError with one sentence. No tensor is
read, and no torch: a folder of hundreds of gigabytes takes milliseconds. The families' own names are not
known here; `trainer.weights_fit` holds the rest against the model that config.json describes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INDEX = "model.safetensors.index.json"
# A header above this is no header: safetensors' own limit.
MOST_HEADER_BYTES = 100_000_000
# Types of weights, and of what may lie beside them: positions, masks.
FLOATS = {"F64", "F32", "F16", "BF16"}
WHOLE = {"I64", "I32", "I16", "I8", "U8", "BOOL"}


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header has it, e.g. `Stored("BF16", (1024, 128))`."""

    dtype: str
    shape: tuple[int, ...]


def check_weights(folder: Path, settings: Mapping[str, object]) -> dict[str, Stored]:
    """Raise ValueError for the first file or tensor that is wrong. settings: of config.json.

    Returns all tensors, by name.
    """
    found: dict[str, Stored] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= read_header(file)
    _check_index(folder, found)
    text = settings.get("text_config")
    shapes = {name: list(one.shape) for name, one in found.items()}
    _check_sizes(folder, shapes, text if isinstance(text, dict) else settings)
    return found


def quantized(settings: Mapping[str, object], tensors: Mapping[str, Stored]) -> str:
    """Name what tells that the weights are quantized; "" where nothing does. settings: of config.json."""
    text = settings.get("text_config")
    for one in (settings, text if isinstance(text, dict) else {}):
        if kind := one.get("quantization_config"):
            method = kind.get("quant_method", "") if isinstance(kind, dict) else ""
            return f"quantization_config in config.json{method and f': {method}'}"
    for name, stored in tensors.items():
        if stored.dtype not in FLOATS and stored.dtype not in WHOLE:
            return f"{name} is {stored.dtype}"
    return ""


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a file, by name. Raises ValueError unless the file is whole."""
    size = file.stat().st_size
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, MOST_HEADER_BYTES):
            raise ValueError(
                f"{file} is no whole safetensors file: its header is cut off or garbled"
            )
        try:
            header = json.loads(data.read(length))
            tensors = {name: one for name, one in header.items() if name != "__metadata__"}
            end = max((one["data_offsets"][1] for one in tensors.values()), default=0)
            found = {n: Stored(str(t["dtype"]), tuple(t["shape"])) for n, t in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f"{file} is no safetensors file: its header cannot be read") from None
    if size != 8 + length + end:
        raise ValueError(
            f"{file} is not whole: it has {size} bytes and its header speaks of {8 + length + end}"
        )
    return found


def _check_index(folder: Path, tensors: Mapping[str, Stored]) -> None:
    """Check that all which the index of several files names is there."""
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        names = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{index} cannot be read as the index of weight files") from None
    for name, file in names.items():
        if not (folder / str(file)).is_file():
            raise ValueError(f"{folder} has no {file}, which {INDEX} names")
        if name not in tensors:
            raise ValueError(f"{folder}: no file holds {name}, which {INDEX} names")


def _check_sizes(
    folder: Path, shapes: Mapping[str, list[int]], settings: Mapping[str, object]
) -> None:
    """Embedding, head, norm and layers are as the config says."""
    vocabulary, hidden = settings.get("vocab_size"), settings.get("hidden_size")
    wanted = {
        "embed_tokens.weight": [vocabulary, hidden],
        "lm_head.weight": [vocabulary, hidden],
        "model.norm.weight": [hidden],
    }
    if not shapes:
        raise ValueError(f"{folder}: its *.safetensors hold no tensor")
    for name, shape in shapes.items():
        for end, asked in wanted.items():
            if name.endswith(end) and None not in asked and shape != asked:
                raise ValueError(f"{folder}: {name} is {shape}, and config.json asks for {asked}")
    asked_layers = settings.get("num_layers") or settings.get("num_hidden_layers")
    found = {int(n) for name in shapes for n in re.findall(r"\.layers\.(\d+)\.", name)}
    if not isinstance(asked_layers, int) or not found:
        return
    if missing := sorted(set(range(asked_layers)) - found):
        raise ValueError(
            f"{folder}: config.json asks for {asked_layers} layers, and the weights have no layer "
            f"{missing[0]}"
        )
    # Beyond them some checkpoints have one layer that predicts further tokens.
    if max(found) > asked_layers:
        raise ValueError(
            f"{folder}: config.json asks for {asked_layers} layers, and the weights have {max(found) + 1}"
        )
