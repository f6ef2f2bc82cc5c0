"""Intervals in a chart of lines: whiskers, a band, and a mark at the best point; plain data for ECharts."""

from collections.abc import Sequence
from itertools import pairwise

from rl.dashboard.charts import GREY, Options

# JavaScript of ours; it gets numbers only.
_WHISKER = """(params, api) => {
  const low = api.coord([api.value(0), api.value(1)]), high = api.coord([api.value(0), api.value(2)]);
  const line = (x1, y1, x2, y2) => ({
    type: "line", shape: {x1, y1, x2, y2}, style: {stroke: api.visual("color"), lineWidth: 1.4},
  });
  return {type: "group", children: [
    line(low[0], low[1], high[0], high[1]),
    line(low[0] - 4, low[1], low[0] + 4, low[1]),
    line(high[0] - 4, high[1], high[0] + 4, high[1]),
  ]};
}"""
_BAND = """(params, api) => {
  const at = (x, y) => api.coord([api.value(x), api.value(y)]);
  return {
    type: "polygon",
    shape: {points: [at(0, 1), at(3, 4), at(3, 5), at(0, 2)]},
    style: {fill: api.visual("color"), opacity: 0.18},
    silent: true,
  };
}"""
Interval = tuple[float, float, float]


def add_whiskers(options: Options, points: Sequence[Interval], colour: str) -> None:
    """Add an upright bar from low to high at each (x, low, high)."""
    _lines_only(options)
    options["series"].append(
        {
            "type": "custom",
            "name": "95 % interval",
            ":renderItem": _WHISKER,
            "encode": {"x": 0, "y": [1, 2], "tooltip": [1, 2]},
            "dimensions": ["x", "low", "high"],
            "color": colour,
            "z": 1,
            "data": [list(point) for point in points],
        }
    )


def add_band(options: Options, points: Sequence[Interval], colour: str) -> None:
    """Add a pale band between low and high along the (x, low, high)."""
    _lines_only(options)
    options["series"].append(
        {
            "type": "custom",
            "name": "band",
            ":renderItem": _BAND,
            "encode": {"x": [0, 3], "y": [1, 2, 4, 5], "tooltip": [1, 2]},
            "color": colour,
            "z": 1,
            "data": [[*one, *other] for one, other in pairwise(points)],
        }
    )


def add_best(options: Options, name: str, x: float, y: float) -> None:
    """Mark the best point of the line of that name."""
    for one in options["series"]:
        if one["name"] == name:
            one["markPoint"] = {
                "silent": True,
                "symbol": "pin",
                "symbolSize": 26,
                "itemStyle": {"color": "#D55E00"},
                "label": {"formatter": "best", "position": "top", "color": GREY, "fontSize": 11},
                "data": [{"coord": [x, y], "name": "best"}],
            }


def _lines_only(options: Options) -> None:
    """Keep what is added to the lines out of the legend."""
    lines = [one["name"] for one in options["series"] if one["type"] == "line"]
    options["legend"]["data"] = [{"name": name} for name in lines]
