"""Charts as ECharts options: plain data, made of series.

Names in a chart come from run folders, so they stand only where ECharts and NiceGUI take them for text: never
as the key of an object (a key that begins with a colon would be run as JavaScript), and never in an HTML
tooltip (`renderMode: richText` draws it on the canvas).
"""

from collections.abc import Sequence
from typing import Any

from rl.dashboard.series import Series, thin

# Okabe and Ito's colours, which those who are colour-blind tell apart; on dark and on light ground.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#999999")
_GREY, _RULE = "#808792", "#80879240"
_MAX_NAME = 60

Options = dict[str, Any]


def lines(title: str, named: Sequence[tuple[str, Series]], *, share: bool = False) -> Options:
    """One line per name over the steps. share: the values lie between 0 and 1."""
    options = _frame(title, legend=len(named) > 1)
    options["xAxis"] = _axis("value", minInterval=1, min="dataMin", max="dataMax")
    options["yAxis"] = _axis("value", scale=not share, **({"min": 0, "max": 1} if share else {}))
    options["series"] = [
        {
            "type": "line",
            "name": name[:_MAX_NAME],
            "data": thin(one),
            "symbolSize": 4,
            "showSymbol": len(one.values) < 30,
            "lineStyle": {"width": 1.6},
        }
        for name, one in named
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


def bars(title: str, named: Sequence[tuple[str, int, bool]]) -> Options:
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


def _frame(title: str, *, legend: bool) -> Options:
    return {
        "animation": False,
        "color": list(COLOURS),
        "title": {
            "text": title[:_MAX_NAME],
            "left": 0,
            "textStyle": {"fontSize": 13, "fontWeight": 600, "color": _GREY},
        },
        "legend": {
            "show": legend,
            "type": "scroll",
            "bottom": 0,
            "textStyle": {"color": _GREY},
            "itemHeight": 8,
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


def _axis(kind: str, **more: Any) -> Options:
    return {
        "type": kind,
        "axisLabel": {"color": _GREY},
        "axisLine": {"lineStyle": {"color": _RULE}},
        "splitLine": {"lineStyle": {"color": _RULE}},
        **more,
    }
