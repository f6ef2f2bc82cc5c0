"""The report of a fusion, fusion.json in the folder of its result: what was merged, and what came from where.

Plain data. M models; a norm is Euclidean, over a tensor's elements.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "fusion.json"
# Kinds of tensors, by what their names hold; the first that fits.
_KINDS = {
    "embedding": r"embed_tokens|wte\.",
    "head": r"lm_head",
    "norm": r"norm",
    "router": r"\.(router|gate)\.",
    "experts": r"experts?\.",
    "attention": r"attn",
    "dense": r"mlp|feed_forward",
}


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a fusion.

    how: the method, `average`, `base`, `model N`, or `copied` for what is no real number. base_norm: of the
    base's tensor; of the first model's without a base. norms: (M,), of the task vectors as the models brought
    them; of the distances from the result without a base. merged_norm: of the result's task vector; of the
    result without a base. conflicts: the share of elements that one model raised and another one lowered,
    None without a base. took: (M,), the share of elements of the result that each model has given to.
    """

    name: str
    shape: tuple[int, ...]
    how: str
    base_norm: float
    norms: tuple[float, ...]
    merged_norm: float
    conflicts: float | None
    took: tuple[float, ...]

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """The part of a model that the tensor belongs to, such as `attention`."""
        return next((k for k, named in _KINDS.items() if re.search(named, self.name)), "other")


@dataclass(frozen=True)
class FusionReport:
    """A whole fusion. settings: as `FusionConfig` has them. models, base: folder and digest of each."""

    settings: dict[str, object]
    base: tuple[str, str] | None
    models: tuple[tuple[str, str], ...]
    tensors: tuple[TensorReport, ...]

    def write(self, folder: Path) -> None:
        """Write fusion.json into the folder."""
        values = asdict(self) | {"kinds": [asdict(one) for one in self.kinds()]}
        (folder / FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")

    def kinds(self) -> list["KindReport"]:
        """The tensors of each kind together, and all of them at last."""
        names = dict.fromkeys(one.kind for one in self.tensors)
        found = [_together(k, [t for t in self.tensors if t.kind == k]) for k in names]
        return [*found, _together("all", self.tensors)]


@dataclass(frozen=True)
class KindReport:
    """Tensors of one kind as one vector: `TensorReport`'s numbers over all of them."""

    kind: str
    tensors: int
    parameters: int
    how: str
    base_norm: float
    norms: tuple[float, ...]
    merged_norm: float
    conflicts: float | None
    took: tuple[float, ...]


def _together(kind: str, tensors: Sequence[TensorReport]) -> KindReport:
    known = [(t.conflicts, t.numel) for t in tensors if t.conflicts is not None]
    elements = sum(t.numel for t in tensors)
    return KindReport(
        kind,
        len(tensors),
        elements,
        ", ".join(dict.fromkeys(t.how for t in tensors)),
        _norm(t.base_norm for t in tensors),
        tuple(_norm(column) for column in zip(*(t.norms for t in tensors), strict=True)),
        _norm(t.merged_norm for t in tensors),
        sum(c * n for c, n in known) / max(1, sum(n for _, n in known)) if known else None,
        tuple(
            sum(s * t.numel for s, t in zip(column, tensors, strict=True)) / max(1, elements)
            for column in zip(*(t.took for t in tensors), strict=True)
        ),
    )


def _norm(parts: Iterator[float] | Sequence[float]) -> float:
    return math.sqrt(math.fsum(one * one for one in parts))
