"""`/run/NAME/timeline?from=&to=`: who did what when, bubbles included; the versions over time."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Query
from nicegui import events, run, ui

from rl.dashboard import charts
from rl.dashboard.drill_down import behind_bar
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import (
    frame,
    live,
    no_such_run,
    notice,
    read,
    redraw,
    run_address,
    tile,
)
from rl.dashboard.run_data import RunData
from rl.dashboard.series import number
from rl.dashboard.timeline import Bar, Timeline, extent, timeline, version_lines

# Versions that lie side by side differ in colour, for those who are colour-blind too.
_VERSION_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C8C00")
_KIND_COLOURS = {
    "wait": "#80879238",
    "load": "#D55E00",
    "sleep": "#80879270",
    "save": "#5B4B8A",
    "stage": "#808792",
    "change": "#D55E00",
}
_LEGEND = (
    ("#80879238", "waits, or has no request"),
    ("#D55E00", "loads weights; or an environment changed"),
    ("#80879270", "asleep"),
    ("#5B4B8A", "checkpoint"),
    ("#56B4E9", "groups in flight"),
)
_MAX_TILES = 12


@dataclass
class View:
    """Stretch of time that the page shows, in seconds since the first event; both ends as in the address.

    start: negative: counted from the end. end: None: as far as the run is.
    """

    run: RunData
    start: float | None
    end: float | None

    @property
    def address(self) -> str:
        """The address that shows the same."""
        both = (("from", self.start), ("to", self.end))
        query = [(key, f"{value:.6g}") for key, value in both if value is not None]
        return run_address(self.run.name, "timeline", query)

    def window(self, whole: float) -> charts.Window:
        """The stretch of the `whole` seconds there are; never empty."""
        end = whole if self.end is None else min(max(self.end, 0.0), whole)
        start = self.start or 0.0
        start = end + start if start < 0 else start
        start = min(max(start, 0.0), whole)
        least = min(0.01, whole)
        if end - start < least:
            start, end = max(0.0, end - least), max(end, least)
        return charts.Window(start, end, whole)

    def zoom(self, start: float, end: float, whole: float) -> None:
        """Take over a zoom, in parts of 100 of the whole; at the right edge the page follows the run."""
        self.start = None if start <= 0.1 else round(start / 100 * whole, 3)
        self.end = None if end >= 99.9 else round(end / 100 * whole, 3)


def timeline_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(
        name: str, begin: Annotated[str, Query(alias="from")] = "", to: str = ""
    ) -> None:
        found = site.runs.find(name)
        if found is None:
            return no_such_run(site, name)
        await read(found)
        with frame(site, found.name, "timeline"):
            await _content(View(found, _seconds(begin), _seconds(to)))


async def _content(view: View) -> None:
    tiles = ui.element("div").classes("tiles")
    empty = ui.column().classes("w-full")
    with empty:
        notice(
            "No events yet.",
            "The first comes when the cold start is done, or the engines have started.",
            "hourglass_empty",
        )
    said: list[object] = []
    shown = Timeline((), (), {})
    with ui.column().classes("w-full gap-2") as whole:
        with ui.row().classes("w-full items-center gap-2"):
            _stretches(lambda start: show(start))
            ui.label(
                "zoom: wheel or slider; drag to move; hover says what; a click opens the trajectories"
            ).classes("quiet")
            ui.space()
            _legend()
        with ui.element("div").classes("panel w-full"):
            lanes = ui.echart({}, on_point_click=lambda e: _open(view.run, shown.lanes, e))
            lanes.on("chart:datazoom", lambda e: zoomed(e), ["start", "end", "batch"], throttle=0.3)
        with ui.element("div").classes("panel w-full"):
            versions = ui.echart({}).style("height: 220px; width: 100%")

    async def show(start: float | None) -> None:
        view.start, view.end = start, None
        ui.navigate.history.replace(view.address)
        await draw()

    async def zoomed(event: events.GenericEventArguments) -> None:
        stretch, both = extent(view.run), zoomed_to(event.args)
        if stretch is None or both is None:
            return
        view.zoom(*both, stretch[1] - stretch[0])
        ui.navigate.history.replace(view.address)
        await draw()

    async def draw() -> None:
        nonlocal shown
        stretch = extent(view.run)
        empty.set_visibility(stretch is None)
        whole.set_visibility(stretch is not None)
        if stretch is None:
            return
        begin, window = stretch[0], view.window(stretch[1] - stretch[0])
        # Beside the event loop: with many spans this takes a while.
        found = await run.io_bound(timeline, view.run, begin + window.start, begin + window.end)
        if found is None:  # the server ends
            return
        shown = found
        _show_idle(tiles, said, idle_figures(found))
        lanes.style(f"height: {70 + 24 * len(found.lanes)}px; width: 100%")
        redraw(lanes, lane_chart(found, begin, window))
        redraw(versions, version_chart(view.run, begin, window))

    async def refresh() -> None:
        before = view.run.spans, view.run.status
        await read(view.run)
        # Both are replaced when something is new: a run that is over costs nothing.
        if view.run.spans is not before[0] or view.run.status is not before[1]:
            await draw()

    await draw()
    live(refresh)


def _open(run: RunData, lanes: Sequence[str], event: events.EChartPointClickEventArguments) -> None:
    """Go to the trajectories behind the bar that was clicked."""
    stretch, value = extent(run), event.value
    places = [number(one) for one in value] if isinstance(value, list) else []
    if stretch is None or len(places) != 3 or places[0] is None or places[1] is None:
        return
    lane = lanes[int(places[0])] if 0 <= places[0] < len(lanes) else ""
    if query := behind_bar(run, lane, str(event.name), stretch[0] + places[1]):
        ui.navigate.to(run_address(run.name, "trajectories", query))


def _stretches(show: Callable[[float | None], Awaitable[None]]) -> None:
    """Buttons for the usual stretches of time."""
    for title, start in (("all", None), ("last 5 min", -300.0), ("last 60 s", -60.0)):
        button = ui.button(title, on_click=lambda _, start=start: show(start))
        button.props("outline size=sm no-caps")


def _show_idle(tiles: ui.element, shown: list[object], now: list[tuple[str, str, str]]) -> None:
    """Show these tiles; nothing is sent where they are the same."""
    if shown == now:
        return
    shown[:] = now
    tiles.clear()
    with tiles:
        for figure in now:
            tile(*figure)


def lane_chart(found: Timeline, begin: float, window: charts.Window) -> charts.Options:
    """The bars as a chart."""
    bars = [
        charts.LaneBar(b.lane, b.start - begin, b.end - begin, colour(b), _said(b, begin))
        for b in found.bars
    ]
    return charts.lanes(found.lanes, bars, window)


def version_chart(data: RunData, begin: float, window: charts.Window) -> charts.Options:
    """The version window over time."""
    lines = [
        (name, [[round(moment - begin, 3), version] for moment, version in points])
        for name, points in version_lines(data).items()
    ]
    return charts.stepped("versions", lines, window)


def colour(bar: Bar) -> str:
    """Colour of a bar; a version's differs from those before and after it."""
    if bar.kind == "version":
        return _VERSION_COLOURS[int(bar.level) % len(_VERSION_COLOURS)]
    if bar.kind == "flight":
        return f"#56B4E9{round(40 + 215 * min(1.0, bar.level)):02X}"
    return _KIND_COLOURS[bar.kind]


def idle_figures(found: Timeline) -> list[tuple[str, str, str]]:
    """Name, value and remark of each tile: the shares of the stretch in which nothing was done."""
    engines = {name: share for name, share in found.idle.items() if name != "learner"}
    figures = []
    if (learner := found.idle.get("learner")) is not None:
        figures.append(("learner idle", f"{learner:.0%}", "no step and no checkpoint"))
    if len(engines) > 1:
        mean = sum(engines.values()) / len(engines)
        figures.append(("engines idle", f"{mean:.0%}", f"mean of {len(engines)}"))
    for name, share in sorted(engines.items(), key=lambda e: -e[1])[:_MAX_TILES]:
        figures.append((f"{name[:40]} idle", f"{share:.0%}", "loads, sleeps or has no request"))
    return figures


def zoomed_to(args: object) -> tuple[float, float] | None:
    """Start and end of a zoom event, in parts of 100; None where it has none."""
    if not isinstance(args, dict):
        return None
    batch = args.get("batch")
    one = batch[0] if isinstance(batch, list) and batch else args
    if not isinstance(one, dict):
        return None
    start, end = number(one.get("start")), number(one.get("end"))
    return None if start is None or end is None else (start, end)


def _said(bar: Bar, begin: float) -> str:
    at = timedelta(seconds=round(bar.start - begin))
    return f"{bar.text}\n{bar.end - bar.start:.3g} s, from {at}"


def _legend() -> None:
    with ui.row().classes("items-center gap-1"):
        for one in _VERSION_COLOURS:
            ui.element("div").style(f"width: 8px; height: 12px; background: {one}")
        ui.label("policy versions").classes("quiet q-mr-md")
    for one, text in _LEGEND:
        with ui.row().classes("items-center gap-1"):
            ui.element("div").style(f"width: 12px; height: 12px; background: {one}")
            ui.label(text).classes("quiet q-mr-md")


def _seconds(text: str) -> float | None:
    """Read seconds from an address; None where it has no number."""
    try:
        return number(float(text))
    except ValueError:
        return None
