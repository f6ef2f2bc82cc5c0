"""The experts' load over the steps as plain data: heat maps per layer, and what the routers' metrics say.

In: experts.jsonl, whose lines may be of any shape, and metrics. Out: charts; each heat map has `MAX_STEPS`
columns and `MAX_ROWS` rows at most, of which each stands for several experts where there are more.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, Strict, TypeAdapter

from rl.dashboard import charts
from rl.dashboard.growing_lines import lines_of
from rl.dashboard.series import Series

MAX_STEPS, MAX_ROWS = 40, 48
# Of a long run so many steps are held at most; then every other one is forgotten.
_HELD = 400
_LINES = (
    (
        "violation",
        "fullest expert's load over the mean, less 1",
        ("load_violation", "load_violation_max"),
    ),
    ("zero", "zero-computation experts: share of choices", ("zero_share",)),
    (
        "computing",
        "experts that compute, per token, and K_e",
        ("ffn_experts", "ffn_experts_wanted"),
    ),
    (
        "agreement",
        "same experts as in the engine: used, own choice",
        ("agreement", "agreement_own"),
    ),
    ("gradient", "gradient of balance loss over policy loss", ("gradient_ratio",)),
)


@dataclass(frozen=True)
class ExpertLoads:
    """Shares of one step's tokens that chose each expert, per layer; the first `computing` compute."""

    step: int
    computing: int
    loads: tuple[array, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, experts, those that compute."""
        return len(self.loads), len(self.loads[0]), self.computing


@dataclass(frozen=True)
class _Line:
    step: Annotated[int, Strict()]
    computing: Annotated[int, Strict()]
    loads: list[list[Annotated[float, Strict(), Field(ge=0, le=1e6, allow_inf_nan=False)]]]


_decode = lines_of(TypeAdapter(_Line))


def read_loads(line: bytes) -> ExpertLoads | None:
    """One line of experts.jsonl; None where it is none."""
    found = _decode(line)
    sizes = {len(layer) for layer in found.loads} if found is not None else set()
    if found is None or len(sizes) != 1 or not 0 < found.computing <= sizes.pop():
        return None
    layers = tuple(array("f", layer) for layer in found.loads)
    return ExpertLoads(found.step, found.computing, layers)


def held(found: Sequence[ExpertLoads]) -> list[ExpertLoads]:
    """Thins a long run's loads; the last ones stay."""
    kept = list(found)
    while len(kept) > _HELD:
        kept = [*kept[:-1][::2], kept[-1]]
    return kept


def heat_map(found: Sequence[ExpertLoads], layer: int) -> charts.Options | None:
    """Experts over steps, as times the mean of those that compute; None where there is no such layer."""
    if not found or not 0 <= layer < len(found[-1].loads):
        return None
    # Of a folder in which another model has been trained before, the last one's.
    alike = [one for one in found if one.shape == found[-1].shape]
    every = -(-len(alike) // MAX_STEPS)
    columns = alike[::-1][::every][::-1]
    _, experts, computing = alike[-1].shape
    width = -(-experts // MAX_ROWS)
    # Experts that compute and those that do not are never in one row.
    rows = [range(at, min(at + width, computing)) for at in range(0, computing, width)]
    rows += [range(at, min(at + width, experts)) for at in range(computing, experts, width)]
    cells = []
    for x, one in enumerate(columns):
        shares = one.loads[layer]
        mean = sum(shares[:computing]) / computing
        for y, row in enumerate(rows):
            load = sum(shares[i] for i in row) / len(row)
            cells.append((x, y, round(load / mean, 2) if mean else 0.0))
    names = [_row_name(row, computing) for row in rows]
    return charts.heat(
        f"layer {layer}: load over the mean", [str(one.step) for one in columns], names, cells
    )


def router_charts(series: Mapping[str, Series]) -> dict[str, charts.Options]:
    """The routers' metrics, those there are, by a name of ours."""
    found = {}
    for name, title, keys in _LINES:
        named = [(key, series[f"router/{key}"]) for key in keys if f"router/{key}" in series]
        if named:
            found[name] = charts.lines(title, named)
    return found


def _row_name(row: range, computing: int) -> str:
    first, last = row[0], row[-1]
    zero = "zero " if first >= computing else ""
    first, last = (i - computing if zero else i for i in (first, last))
    return f"{zero}{first}" if first == last else f"{zero}{first}-{last}"
