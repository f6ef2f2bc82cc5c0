"""Holds the tokenizers of two folders against each other, by their files: no tokenizer is loaded.

Two are the same where they give every text the same ids: the same vocabulary, merges, added tokens, and the
same steps before them. A chat template is no part of that. tokenizer.json says all of it; of older formats
the file has to be the same.
"""

import json
from pathlib import Path

WHOLE = "tokenizer.json"
# Formats of which the file itself is compared.
OTHERS = ("tokenizer.model", "spiece.model", "tiktoken.model", "vocab.json", "vocab.txt")
_PARTS = ("normalizer", "pre_tokenizer", "added_tokens")


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the tokenizer's files that a folder has."""
    return [name for name in (WHOLE, *OTHERS) if (folder / name).is_file()]


def tokenizer_difference(one: Path, other: Path) -> str:
    """Say what differs in a few words; "" where nothing does.

    Raises ValueError where a folder has no tokenizer, or one that cannot be read.
    """
    for folder in (one, other):
        if not tokenizer_files(folder):
            raise ValueError(f"{folder} has no tokenizer")
    if (one / WHOLE).is_file() and (other / WHOLE).is_file():
        return _difference(_read(one / WHOLE), _read(other / WHOLE))
    shared = [name for name in OTHERS if (one / name).is_file() and (other / name).is_file()]
    if not shared:
        return f"one has {tokenizer_files(one)[0]}, the other {tokenizer_files(other)[0]}"
    for name in shared:
        if (one / name).read_bytes() != (other / name).read_bytes():
            return f"their {name} differ"
    return ""


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


def _difference(one: dict[str, object], other: dict[str, object]) -> str:
    models = [found.get("model") for found in (one, other)]
    vocabularies = [_vocabulary(model) for model in models]
    if vocabularies[0] != vocabularies[1]:
        sizes = [len(found) for found in vocabularies]
        if sizes[0] != sizes[1]:
            return f"vocabularies of {sizes[0]} and {sizes[1]} tokens"
        return f"vocabularies of {sizes[0]} tokens that are not the same"
    merges = [_merges(model) for model in models]
    if merges[0] != merges[1]:
        return "other merges"
    for part in _PARTS:
        if one.get(part) != other.get(part):
            return f"another {part}"
    return ""


def _vocabulary(model: object) -> dict[str, int] | list[object]:
    found = model.get("vocab") if isinstance(model, dict) else None
    return found if isinstance(found, dict | list) else {}


def _merges(model: object) -> list[str]:
    """As pairs with a space between, which older files have and newer ones write as lists."""
    found = model.get("merges") if isinstance(model, dict) else None
    rows = found if isinstance(found, list) else []
    return [" ".join(row) if isinstance(row, list) else str(row) for row in rows]
