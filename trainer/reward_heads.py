"""The heads of a reward model: a name and a weight for each aspect that it scores, kept in its config.json.

In: the aspects of preference pairs and how much each counts. Out: names in the order of the rows of
`score.weight`, and the score of a conversation as the weighted sum of its heads' numbers. Imports no torch.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# An aspect becomes the name of a metric and a key of settings.
NAME = re.compile(r"\w[\w-]{0,63}")
# Of a model that has one head and no aspect.
ONLY = "reward"
WEIGHTS = "reward_weights"


@dataclass(frozen=True)
class Heads:
    """Names and weights, e.g. `Heads(("polite", "short"), (1.0, 0.5))`."""

    names: tuple[str, ...] = (ONLY,)
    weights: tuple[float, ...] = (1.0,)

    def compared(self, aspect: str) -> tuple[float, ...]:
        """Weights of the heads in what a pair compares: the aspect's head alone; without one, the score.

        Raises ValueError for an aspect that there is not.
        """
        if not aspect:
            return self.weights
        if aspect not in self.names:
            raise ValueError(f"there is no head {aspect!r}; there are {', '.join(self.names)}")
        return tuple(float(name == aspect) for name in self.names)

    def score(self, numbers: Sequence[float]) -> float:
        """The weighted sum of the heads' numbers."""
        return math.fsum(w * n for w, n in zip(self.weights, numbers, strict=True))


def heads_for(aspects: Sequence[str], given: Mapping[str, float]) -> Heads:
    """The heads for pairs of these aspects ("" for a pair without one). given: weights that are not 1. Raises
    ValueError."""
    names = sorted({one for one in aspects if one})
    if unknown := [name for name in given if name not in names]:
        raise ValueError(
            f"no pair has the aspect {unknown[0]!r}; there are {', '.join(names) or 'none'}"
        )
    if not names:
        return Heads()
    weights = tuple(given.get(name, 1.0) for name in names)
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"weights have to be finite numbers, not {weights}")
    if not any(weights):
        raise ValueError("every aspect has weight 0: give one a weight")
    return Heads(tuple(names), weights)


def config_of(heads: Heads) -> dict[str, Any]:
    """Entries of config.json, as transformers and vLLM read the number of heads there."""
    return {
        "id2label": {str(number): name for number, name in enumerate(heads.names)},
        "label2id": {name: number for number, name in enumerate(heads.names)},
        WEIGHTS: list(heads.weights),
    }


def read_heads(folder: Path) -> Heads:
    """Those of a folder; one head where it says nothing. Raises ValueError, OSError."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = config.get("id2label") if WEIGHTS in config else None
    if not labels:
        return Heads()
    try:
        names = tuple(str(labels[str(number)]) for number in range(len(labels)))
        weights = tuple(float(one) for one in config[WEIGHTS])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder}/config.json: id2label or {WEIGHTS} cannot be read") from None
    if len(names) != len(weights) or not all(map(math.isfinite, weights)):
        raise ValueError(
            f"{folder}/config.json: {WEIGHTS} has to give a finite weight to each of {len(names)} heads"
        )
    return Heads(names, weights)
