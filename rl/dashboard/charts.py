"""Charts as ECharts options: plain data, made of series.

Names in a chart come from run folders, so they stand only where ECharts and NiceGUI take them for text: never
as the key of an object (the value of one that begins with a colon is run as JavaScript), and never in an HTML
tooltip (`renderMode: richText` draws it on the canvas).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl.dashboard.change_points import ChangePoint
from rl.dashboard.series import Series, thin

# Okabe and Ito's colours, which those who are colour-blind tell apart; on dark and on light ground.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#999999")
_STEPS = {"minInterval": 1}
# A canvas does not know which ground the page has: this one can be read on white and on black.
GREY, _RULE = "#6f7782", "#80879240"
_MAX_NAME = 60
# Charts one below the other, with the same axis of time.
_LANE_GRID = {"left": 124, "right": 16, "containLabel": False}

Options = dict[str, Any]
# JavaScript of ours. It gets text of a run folder as a value only, and gives it to where text is drawn.
_NAME = "(bar) => bar.name"
_CLOCK = """(value) => {
  const s = Math.round(value * 10) / 10, two = (n) => String(n).padStart(2, "0");
  const rest = Math.floor(s % 60), tenth = Math.round((s % 1) * 10);
  const head = s < 3600 ? Math.floor(s / 60) : Math.floor(s / 3600) + ":" + two(Math.floor(s / 60) % 60);
  return head + ":" + two(rest) + (tenth ? "." + tenth : "");
}"""
_CELL = "(cell) => Number(cell.value[2].toPrecision(5)) + ' times the mean'"
_BAR = """(params, api) => {
  const lane = api.value(0), from = api.coord([api.value(1), lane]), to = api.coord([api.value(2), lane]);
  const height = api.size([0, 1])[1] * 0.72, area = params.coordSys;
  const left = Math.max(from[0], area.x);
  const right = Math.min(Math.max(to[0], from[0] + 1.5), area.x + area.width);
  return right <= left ? null : {
    type: "rect",
    shape: {x: left, y: from[1] - height / 2, width: right - left, height: height},
    style: {fill: api.visual("color")},
  };
}"""


@dataclass(frozen=True)
class Window:
    """The stretch of time that is shown, in seconds since the first event, of `whole` seconds in all."""

    start: float
    end: float
    whole: float


@dataclass(frozen=True)
class LaneBar:
    """A bar in a lane, counted from 0; seconds since the first event; what hovering over it says."""

    lane: int
    start: float
    end: float
    colour: str
    text: str


def lines(
    title: str,
    named: Sequence[tuple[str, Series]],
    *,
    share: bool = False,
    marks: Sequence[tuple[str, ChangePoint]] = (),
) -> Options:
    """One line per name over the steps. share: the values lie between 0 and 1. marks: upright lines where a
    series of that name changed."""
    options = _frame(title, legend=len(named) > 1)
    options["xAxis"] = _axis("value", minInterval=1, min="dataMin", max="dataMax")
    options["yAxis"] = _axis("value", scale=not share, **({"min": 0, "max": 1} if share else {}))
    options["series"] = [
        {
            "type": "line",
            "name": name[:_MAX_NAME],
            "data": _rounded(thin(one)),
            "symbolSize": 4,
            "showSymbol": len(one.values) < 30,
            "lineStyle": {"width": 1.6},
        }
        for name, one in named
    ]
    for name, point in marks:
        for (other, _), drawn in zip(named, options["series"], strict=True):
            if other == name:
                line = drawn.setdefault("markLine", _mark_line())
                line["data"].append({"xAxis": point.step, "name": point.how})
    return options


def _mark_line() -> Options:
    return {
        "silent": True,
        "symbol": "none",
        "lineStyle": {"type": "dashed", "width": 1},
        "label": {"formatter": "{b}", "color": GREY, "fontSize": 10},
        "data": [],
    }


@dataclass(frozen=True)
class Curve:
    """A line of [x, y] points; faint: drawn in the background of another of its name."""

    name: str
    points: list[list[float]]
    faint: bool = False


def curves(
    title: str, found: Sequence[Curve], *, logarithmic: bool = False, clock: bool = False
) -> Options:
    """Curves with a button that saves the picture. logarithmic: without what is not above 0.

    clock: x is in seconds.
    """
    names = list(dict.fromkeys(curve.name for curve in found))
    options = _frame(title, legend=len(names) > 1)
    picture = {"name": re.sub(r"[^\w.-]+", "_", title), "pixelRatio": 2, "title": "save as PNG"}
    options["toolbox"] = {
        "right": 0,
        "top": -4,
        "itemSize": 13,
        "feature": {"saveAsImage": picture},
    }
    options["xAxis"] = _axis("value", min="dataMin", max="dataMax", **({} if clock else _STEPS))
    if clock:
        options["xAxis"]["axisLabel"] |= {":formatter": _CLOCK, "hideOverlap": True}
    options["yAxis"] = _axis("log" if logarithmic else "value", scale=True)
    options["series"] = [
        {
            "type": "line",
            "name": curve.name[:_MAX_NAME],
            "data": _rounded([p for p in curve.points if p[1] > 0 or not logarithmic]),
            "symbolSize": 4,
            "showSymbol": len(curve.points) < 30 and not curve.faint,
            "color": COLOURS[names.index(curve.name) % len(COLOURS)],
            "lineStyle": {"width": 1.0, "opacity": 0.3} if curve.faint else {"width": 1.6},
        }
        for curve in found
    ]
    return options


def shares(title: str, named: Sequence[tuple[str, Series]]) -> Options:
    """Seconds of each step in parts, one upon the other."""
    options = lines(title, named)
    options["yAxis"] = _axis("value", name="s")
    for one in options["series"]:
        one |= {"stack": "step", "areaStyle": {"opacity": 0.5}, "showSymbol": False}
        one["lineStyle"] = {"width": 0}
    return options


def histogram(title: str, named: Sequence[tuple[str, int, bool]]) -> Options:
    """One bar per (name, height, whether it stands out)."""
    options = _frame(title, legend=False)
    options["xAxis"] = _axis("category", data=[name[:_MAX_NAME] for name, _, _ in named])
    options["yAxis"] = _axis("value", minInterval=1)
    data = [
        {"value": height, "itemStyle": {"opacity": 1.0 if bright else 0.25}}
        for _, height, bright in named
    ]
    options["series"] = [{"type": "bar", "name": title[:_MAX_NAME], "data": data}]
    return options


def bars(
    title: str,
    categories: Sequence[str],
    named: Sequence[tuple[str, Sequence[float]]],
    *,
    stacked: bool = False,
) -> Options:
    """One bar per name in each category, side by side or one upon the other."""
    options = _frame(title, legend=True)
    options["xAxis"] = _axis("category", data=[one[:_MAX_NAME] for one in categories])
    options["xAxis"]["axisLabel"] |= {"interval": 0, "rotate": 28, "fontSize": 11}
    options["yAxis"] = _axis("value", min=0)
    options["series"] = [
        {
            "type": "bar",
            "name": name[:_MAX_NAME],
            "data": [_short(value) for value in values],
            **({"stack": "all"} if stacked else {}),
        }
        for name, values in named
    ]
    return options


def heat(
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Sequence[tuple[int, int, float]],
) -> Options:
    """Cells of (column, row, value), of which 1 is as it should be; 0 and 2 have the strongest colours."""
    options = _frame(title, legend=False)
    options["grid"] |= {"bottom": 44}
    options["xAxis"] = _axis("category", data=list(columns))
    options["yAxis"] = _axis("category", data=list(rows))
    options["tooltip"] = {"renderMode": "richText", "confine": True, ":formatter": _CELL}
    options["visualMap"] = {
        "min": 0,
        "max": 2,
        "calculable": True,
        "orient": "horizontal",
        "left": "center",
        "bottom": 0,
        "itemHeight": 90,
        "itemWidth": 12,
        "textStyle": {"color": GREY},
        "inRange": {"color": ["#0072B2", "#56B4E9", "#EDEDED", "#E69F00", "#D55E00"]},
    }
    options["series"] = [{"type": "heatmap", "name": "load", "data": [list(c) for c in cells]}]
    return options


def stepped(
    title: str, named: Sequence[tuple[str, Sequence[Sequence[float]]]], window: Window
) -> Options:
    """Lines of [seconds, value] that stay until their next point; their axis is that of `lanes`."""
    options = _frame(title, legend=True) | {"xAxis": _seconds(window)}
    options["grid"] |= _LANE_GRID | {"bottom": 56}
    options["yAxis"] = _axis("value", scale=True, minInterval=1)
    options["series"] = [
        {
            "type": "line",
            "name": name,
            "step": "end",
            "showSymbol": False,
            "data": _held(points, window),
        }
        for name, points in named
    ]
    return options


def lanes(names: Sequence[str], bars: Sequence[LaneBar], window: Window) -> Options:
    """Bars in lanes, the first one on top; zoom by wheel and by the slider below."""
    options = _frame("", legend=False)
    options["grid"] |= _LANE_GRID | {"top": 4, "bottom": 52}
    options["tooltip"] = {"renderMode": "richText", "confine": True, ":formatter": _NAME}
    options["xAxis"] = _seconds(replace(window, start=0.0, end=window.whole))
    options["yAxis"] = _axis("category", inverse=True, data=[name[:_MAX_NAME] for name in names])
    options["yAxis"]["axisLabel"] |= {"width": 110, "overflow": "truncate", "interval": 0}
    held = {"startValue": window.start, "endValue": window.end, "filterMode": "weakFilter"}
    slider = {"type": "slider", "bottom": 4, "height": 20, "showDataShadow": False}
    slider |= {"showDetail": False, "brushSelect": False, "throttle": 200}
    options["dataZoom"] = [held | {"type": "inside", "throttle": 200}, held | slider]
    options["series"] = [
        {
            "type": "custom",
            ":renderItem": _BAR,
            "encode": {"x": [1, 2], "y": 0},
            "data": [
                {
                    "value": [bar.lane, round(bar.start, 3), round(bar.end, 3)],
                    "name": bar.text[:300],
                    "itemStyle": {"color": bar.colour},
                }
                for bar in bars
            ],
        }
    ]
    return options


def _rounded(points: Sequence[Sequence[float]]) -> list[list[float]]:
    """Points as a tooltip says them; the table of the metrics has all digits."""
    return [[x, _short(value)] for x, value in points]


def _short(value: float) -> float:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _held(points: Sequence[Sequence[float]], window: Window) -> list[list[float]]:
    """Cut a stepped line to the window, from edge to edge."""
    before = [value for moment, value in points if moment <= window.start][-1:]
    within = [[moment, value] for moment, value in points if window.start < moment <= window.end]
    shown = [*([window.start, value] for value in before), *within]
    return _rounded([*shown, [window.end, shown[-1][1]]]) if shown else []


def _seconds(window: Window) -> Options:
    axis = _axis("value", min=window.start, max=window.end)
    axis["axisLabel"] |= {":formatter": _CLOCK, "hideOverlap": True, "showMaxLabel": False}
    return axis


def _frame(title: str, *, legend: bool) -> Options:
    return {
        "animation": False,
        "color": list(COLOURS),
        "title": {
            "text": title[:_MAX_NAME],
            "left": 0,
            "top": 0,
            "textStyle": {"fontSize": 13, "fontWeight": 600, "color": GREY},
        },
        "legend": {
            "show": legend,
            "type": "scroll",
            "bottom": 2,
            # A line as high as its letters: the scrolling legend cuts off what stands out of it.
            "textStyle": {"color": GREY, "fontSize": 11, "lineHeight": 16},
            "pageTextStyle": {"color": GREY},
            "itemWidth": 14,
            "itemHeight": 8,
            "itemGap": 8,
        },
        "tooltip": {"trigger": "axis", "renderMode": "richText", "confine": True},
        "grid": {
            "left": 8,
            "right": 16,
            "top": 36,
            "bottom": 34 if legend else 8,
            "containLabel": True,
        },
    }


def _axis(kind: str, **more: object) -> Options:
    return {
        "type": kind,
        "axisLabel": {"color": GREY},
        "axisLine": {"lineStyle": {"color": _RULE}},
        "splitLine": {"lineStyle": {"color": _RULE}},
        **more,
    }
