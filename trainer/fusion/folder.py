"""Folders of models that are to be fused: what is in them, and why some do not go together. No torch here.

In: folders in the published form. Out: where each tensor lies, or a ValueError with one sentence. Headers are
read, and no tensor.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint_files import FLOATS, INDEX, Stored, check_weights, quantized, read_header
from trainer.tokenizer_identity import tokenizer_difference, tokenizer_files

# Keys of config.json in which models of one architecture may differ.
_FREE = {
    "_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "_attn_implementation",
}  # fmt: skip


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder: its config.json, and where each of its tensors lies."""

    path: Path
    config: Mapping[str, object]
    tensors: Mapping[str, tuple[Path, Stored]]

    @property
    def files(self) -> dict[str, list[str]]:
        """Names of the tensors of each weight file, by the file's name."""
        found: dict[str, list[str]] = {}
        for name, (file, _) in self.tensors.items():
            found.setdefault(file.name, []).append(name)
        return found


def open_folder(path: Path) -> ModelFolder:
    """Read a folder's config and headers. Raises ValueError where it cannot be fused."""
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such folder")
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} has no config.json, so it is no model's folder")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object")
    if not list(path.glob("*.safetensors")):
        raise ValueError(f"{path} has no *.safetensors weights")
    if said := quantized(config, check_weights(path, config)):
        raise ValueError(
            f"{path} is quantized ({said}), and quantized weights have no mean: take the folder that it was "
            "made from"
        )
    tensors: dict[str, tuple[Path, Stored]] = {}
    for one in _weight_files(path):
        for name, stored in read_header(one).items():
            if name in tensors:
                raise ValueError(f"{path}: both {tensors[name][0].name} and {one.name} hold {name}")
            tensors[name] = one, stored
    if not tokenizer_files(path):
        raise ValueError(f"{path} has no tokenizer, so nothing says whether it is the others'")
    return ModelFolder(path, config, tensors)


def _weight_files(path: Path) -> list[Path]:
    """The files that the index names, where there is one."""
    index = path / INDEX
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return sorted({path / str(file) for file in named.values()})


def check_together(models: Sequence[ModelFolder]) -> None:
    """Raise ValueError unless all are of one architecture and one tokenizer, tensor by tensor."""
    first = models[0]
    for other in models[1:]:
        _check_configs(first, other)
        if said := tokenizer_difference(first.path, other.path):
            raise ValueError(
                f"{other.path} has another tokenizer than {first.path} ({said}): their tokens do not mean "
                "the same, so their weights have no mean"
            )
        _check_tensors(first, other)
        _check_tensors(other, first)


def _check_configs(first: ModelFolder, other: ModelFolder) -> None:
    kinds = [one.config.get("model_type", "unknown") for one in (first, other)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{other.path} is of the family {kinds[1]} and {first.path} of {kinds[0]}: only models of one "
            "family can be fused"
        )
    for key in sorted(first.config.keys() & other.config.keys() - _FREE):
        ours, theirs = first.config[key], other.config[key]
        if ours != theirs:
            raise ValueError(
                f"{other.path}: {key} is {theirs!r} in its config.json, and {ours!r} in that of "
                f"{first.path}: they are not of one architecture"
            )


def _check_tensors(first: ModelFolder, other: ModelFolder) -> None:
    """Every tensor of `other` is in `first`, of the same shape and kind."""
    tied = first.config.get("tie_word_embeddings") is True
    for name, (_, stored) in sorted(other.tensors.items()):
        if name not in first.tensors:
            if tied and name == "lm_head.weight":
                continue
            raise ValueError(f"{first.path} has no tensor {name}, which {other.path} has")
        mine = first.tensors[name][1]
        if mine.shape != stored.shape:
            raise ValueError(
                f"{other.path}: {name} is {list(stored.shape)}, and {list(mine.shape)} in {first.path}"
            )
        if (mine.dtype in FLOATS) != (stored.dtype in FLOATS):
            raise ValueError(
                f"{other.path}: {name} is {stored.dtype}, and {mine.dtype} in {first.path}"
            )


def digest(folder: ModelFolder) -> str:
    """A hash of config and headers, by which a report names what it was made of."""
    found = hashlib.sha256(json.dumps(folder.config, sort_keys=True).encode())
    for name, (file, stored) in sorted(folder.tensors.items()):
        found.update(f"{name} {file.name} {stored.dtype} {stored.shape}\n".encode())
    return found.hexdigest()[:16]
