"""The scores of a reward model's own training, kept in its folder: what later scores are held against.

In: scores of training conversations, and a few conversations as anchors. Out: `scores.json`, and distances of
other scores to those. A policy that improves moves away from them, which is no fault; how far it has gone is
how far the model judges what it has not seen. Anchors are scored again beside a run, and a frozen model gives
them the same scores. Imports no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

FILE = "scores.json"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Anchor:
    """One conversation, as messages in chat form, and its score at the end of training."""

    messages: tuple[dict[str, Any], ...]
    score: float


@dataclass(frozen=True)
class TrainingScores:
    """Scores of training conversations, chosen and rejected ones alike, ascending; and the anchors."""

    scores: tuple[float, ...]
    anchors: tuple[Anchor, ...] = ()

    @property
    def spread(self) -> float:
        """Their standard deviation, in whose units scores move; 1 where all are equal."""
        return float(np.std(self.scores)) or 1.0


_READ = TypeAdapter(TrainingScores)


def write_scores(folder: Path, found: TrainingScores) -> None:
    """Write them into a reward model's folder."""
    (folder / FILE).write_text(json.dumps(asdict(found)), encoding="utf-8")


def read_scores(folder: Path) -> TrainingScores | None:
    """Those of a reward model's folder; None where it has none. Raises ValueError for ones that are wrong."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{folder / FILE} cannot be read: {error}") from None
    try:
        found = _READ.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{folder / FILE}: {where}: {first['msg']}") from None
    if not found.scores or not np.isfinite(found.scores).all():
        raise ValueError(f"{folder / FILE}: it holds no scores, or some that are not finite")
    return found


def kolmogorov_smirnov(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference of the two empirical distribution functions, from 0 to 1."""
    x, y = np.sort(a), np.sort(b)
    at = np.concatenate([x, y])
    below = [np.searchsorted(one, at, side="right") / len(one) for one in (x, y)]
    return float(np.abs(below[0] - below[1]).max())


def wasserstein(a: Sequence[float], b: Sequence[float]) -> float:
    """The mean distance by which one sample has to be moved to become the other: ∫ |F_a - F_b|."""
    x, y = np.sort(a), np.sort(b)
    at = np.sort(np.concatenate([x, y]))
    below = [np.searchsorted(one, at[:-1], side="right") / len(one) for one in (x, y)]
    return float(np.sum(np.abs(below[0] - below[1]) * np.diff(at)))
