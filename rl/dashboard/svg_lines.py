"""Lines over the steps as SVG: the charts of a report, which has no script. All text is escaped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from rl.dashboard.change_points import ChangePoint
from rl.dashboard.charts import COLOURS
from rl.dashboard.series import Series, thin

WIDTH, HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 26
_MOST_LINES = len(COLOURS)
# Larger values are drawn as this one.
_LARGEST = 1e100
Point = tuple[float, float]


@dataclass(frozen=True)
class Lines:
    """A chart of named lines. whiskers: (x, low, high) of the first line; best: a point of it. marks: changes
    of the line of a name. share: values lie between 0 and 1."""

    title: str
    named: Sequence[tuple[str, Series]]
    share: bool = False
    whiskers: Sequence[tuple[float, float, float]] = ()
    marks: Sequence[tuple[str, ChangePoint]] = ()
    best: Point | None = None


@dataclass(frozen=True)
class _Axes:
    """From values to places in the picture."""

    x: Point
    y: Point
    ticks: tuple[float, ...] = field(default=())

    def place(self, x: float, y: float) -> str:
        return f"{self.across(x):.1f},{self.up(y):.1f}"

    def across(self, x: float) -> float:
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def up(self, y: float) -> float:
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def svg(chart: Lines) -> str:
    """The chart with its title and legend as HTML; a word where there is nothing to draw."""
    named = [(name, _bounded(one)) for name, one in chart.named if one.values][:_MOST_LINES]
    title = f"<h3>{escape(chart.title)}</h3>"
    if not named:
        return f'<figure>{title}<p class="quiet">no values</p></figure>'
    axes = _axes(chart, named)
    parts = [*_grid(axes), *_marks(chart, axes)]
    for number, (_, one) in reversed(list(enumerate(named))):
        parts += _line(thin(one), COLOURS[number], axes, 1.2 if number else 2.2)
    parts += [_whisker(axes, *one) for one in chart.whiskers]
    if chart.best is not None:
        x, y = axes.across(chart.best[0]), axes.up(chart.best[1])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="#D55E00"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{max(10.0, y - 9):.1f}" text-anchor="middle">best</text>'
        )
    legend = "".join(
        f'<span><i style="background:{COLOURS[n]}"></i>{escape(name[:60])}</span>'
        for n, (name, _) in enumerate(named)
    )
    box = (
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title, quote=True)}"'
    )
    return (
        f'<figure>{title}<svg {box}>{"".join(parts)}</svg><p class="legend">{legend}</p></figure>'
    )


def _bounded(one: Series) -> Series:
    """The series with values so large that their differences would be infinite brought down to the bound."""
    return Series(one.steps, [max(-_LARGEST, min(_LARGEST, y)) for y in one.values], one.times)


def _axes(chart: Lines, named: Sequence[tuple[str, Series]]) -> _Axes:
    xs = [step for _, one in named for step in (one.steps[0], one.steps[-1])]
    ys = [value for _, one in named for value in one.values]
    ys += [value for _, low, high in chart.whiskers for value in (low, high)]
    low, high = (0.0, 1.0) if chart.share else (min(ys), max(ys))
    if high - low <= 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(abs(low), 1.0), high + 0.5 * max(abs(high), 1.0)
    step = _nice((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(step * number for number in range(first, last + 1))
    left, right = min(xs), max(xs)
    return _Axes((left, max(right, left + 1)), (ticks[0], ticks[-1]), ticks)


def _nice(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _grid(axes: _Axes) -> list[str]:
    parts = []
    for tick in axes.ticks:
        y = axes.up(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" class="rule"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for x in (axes.x[0], (axes.x[0] + axes.x[1]) / 2, axes.x[1]):
        place = axes.across(x)
        anchor = {axes.x[0]: "start", axes.x[1]: "end"}.get(x, "middle")
        parts.append(
            f'<text x="{place:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{x:.0f}</text>'
        )
    return parts


def _line(points: Sequence[Sequence[float]], colour: str, axes: _Axes, width: float) -> list[str]:
    places = [axes.place(x, y) for x, y in points]
    parts = [
        f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
    ]
    if len(points) <= 30:
        at = (place.split(",") for place in places)
        parts += [f'<circle cx="{x}" cy="{y}" r="2.4" fill="{colour}"/>' for x, y in at]
    return parts


def _whisker(axes: _Axes, x: float, low: float, high: float) -> str:
    place, bottom, top = axes.across(x), axes.up(low), axes.up(high)
    caps = "".join(f"M{place - 4:.1f} {y:.1f}h8" for y in (bottom, top))
    return (
        f'<path d="M{place:.1f} {bottom:.1f}V{top:.1f}{caps}" stroke="{COLOURS[0]}" fill="none"/>'
    )


def _marks(chart: Lines, axes: _Axes) -> list[str]:
    parts = []
    for _, point in chart.marks:
        place = axes.across(point.step)
        parts.append(f'<path d="M{place:.1f} {_TOP}V{HEIGHT - _BOTTOM}" class="mark"/>')
        parts.append(f'<text x="{place + 3:.1f}" y="{_TOP + 9}">{escape(point.how)}</text>')
    return parts
