"""`/run/NAME/metrics?match=EXPRESSION&also=RUN&smooth=0.6&log=1&x=time`: several runs in a chart per key.

`/run/NAME/metrics.csv` with the same query is the same as a table.
"""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated

from fastapi import Query, Response
from nicegui import app, ui
from nicegui.elements.mixins.value_element import ValueElement
from nicegui.events import GenericEventArguments

from rl.dashboard import charts
from rl.dashboard.drill_down import drill_down, nearest
from rl.dashboard.metric_guide import about_key, by_section
from rl.dashboard.metrics_table import as_csv
from rl.dashboard.page import Site
from rl.dashboard.pages.chart_click import on_place
from rl.dashboard.pages.frame import (
    frame,
    live,
    no_such_run,
    notice,
    read,
    redraw,
    run_address,
)
from rl.dashboard.run_data import RunData
from rl.dashboard.series import matching, number, smoothed, thin

FIRST_MATCH = "pass_rate$|reward$|^loss/|^time/|^staleness/"
# Charts that a page has from the beginning; every other one is drawn when its place comes into view.
MAX_CHARTS = 24
CHART_HEIGHT = "height: 230px"
MAX_SMOOTHING = 0.99


@dataclass
class Choice:
    """State of the page: the runs, the first of which it is about, and the expression.

    smooth: how much the value before counts against the next, 0 to 0.99. x: "step" or "time".
    """

    runs: list[RunData]
    match: str
    smooth: float = 0.0
    logarithmic: bool = False
    x: str = "step"

    @property
    def address(self) -> str:
        """The address that shows the same."""
        query = [("match", self.match), *(("also", run.name) for run in self.runs[1:])]
        query += [("smooth", f"{self.smooth:g}")] if self.smooth else []
        query += [("log", "1")] if self.logarithmic else []
        query += [("x", "time")] if self.x == "time" else []
        return run_address(self.runs[0].name, "metrics", query)

    @property
    def table_address(self) -> str:
        """The address of the shown values as CSV."""
        query = [("match", self.match), *(("also", run.name) for run in self.runs[1:])]
        return run_address(self.runs[0].name, "metrics.csv", query)


@dataclass(frozen=True)
class _Controls:
    """Controls of the page."""

    expression: ui.input
    beside: ui.select
    smooth: ui.slider
    log: ui.checkbox
    by: ui.toggle

    @property
    def all(self) -> tuple[ValueElement, ...]:
        return self.expression, self.beside, self.smooth, self.log, self.by


def metrics_page(site: Site, route: str) -> None:
    """Register the page."""

    @app.get(f"{route}.csv")
    async def download(
        name: str, match: str = FIRST_MATCH, also: Annotated[list[str] | None, Query()] = None
    ) -> Response:
        run = site.runs.find(name)
        if run is None:
            return Response("there is no such run\n", 404, media_type="text/plain")
        choice = Choice([run, *_others(site, run, also)], match)
        await read(*choice.runs)
        try:
            table = as_csv(choice.runs, wanted(choice))
        except ValueError as error:
            return Response(f"{error}\n", 400, media_type="text/plain")
        headers = {"Content-Disposition": 'attachment; filename="metrics.csv"'}
        return Response(table, media_type="text/csv; charset=utf-8", headers=headers)

    @ui.page(route, response_timeout=60)
    async def page(
        name: str,
        match: str = FIRST_MATCH,
        also: Annotated[list[str] | None, Query()] = None,
        smooth: str = "",
        log: str = "",
        x: str = "step",
    ) -> None:
        run = site.runs.find(name)
        if run is None:
            return no_such_run(site, name)
        by = "time" if x == "time" else "step"
        choice = Choice([run, *_others(site, run, also)], match, smoothing(smooth), log == "1", by)
        await read(*choice.runs)
        with frame(site, run.name, "metrics"):
            if missing := [other for other in also or () if site.runs.find(other) is None]:
                notice(f"There is no run named {', '.join(map(repr, missing))}.", icon="search_off")
            _content(site, choice)


def _content(site: Site, choice: Choice) -> None:
    shown: list[str] = []
    drawn: dict[str, ui.echart] = {}

    @ui.refreshable
    def panels() -> None:
        shown.clear()
        drawn.clear()
        try:
            keys = wanted(choice)
        except ValueError as error:
            notice(str(error), "Such as reward$ or ^loss/; a dot shows all.", "error")
            return
        every = len({key for run in choice.runs for key in run.series})
        if not every:
            notice("No metrics yet.", "They come with the first evaluation or learner step.")
        elif not keys:
            notice(f"None of {every} keys matches.", "Such as reward$ or ^loss/; a dot shows all.")
        else:
            ui.label(f"{len(keys)} of {every} keys").classes("quiet")
        shown.extend(keys)
        _sections(choice, keys, drawn)

    async def choose() -> None:
        choice.runs[1:] = _others(site, choice.runs[0], controls.beside.value)
        choice.match, choice.x = controls.expression.value or "", controls.by.value
        choice.smooth = controls.smooth.value or 0.0
        choice.logarithmic = bool(controls.log.value)
        await read(*choice.runs)
        ui.navigate.history.replace(choice.address)
        panels.refresh()

    async def refresh() -> None:
        await read(*choice.runs)
        if shown != _keys(choice):
            panels.refresh()
        for key, one in drawn.items():
            redraw(one, chart(choice, key))

    controls = _controls(site, choice)
    for control in controls.all:
        control.on_value_change(choose)
    panels()
    live(refresh)


def _sections(choice: Choice, keys: list[str], drawn: dict[str, ui.echart]) -> None:
    """A section for each kind of question. Charts beyond the first are drawn once they are in view."""
    first = first_of(keys)

    def draw(key: str) -> None:
        drawn[key] = ui.echart(chart(choice, key)).style(CHART_HEIGHT)
        if choice.x == "step":
            on_place(drawn[key], lambda place: _open(choice.runs[0], key, place))

    def later(key: str) -> None:
        place = ui.element("q-intersection").style(f"min-{CHART_HEIGHT}")

        def seen(event: GenericEventArguments) -> None:
            if event.args and key not in drawn:
                with place:
                    draw(key)

        place.on("visibility", seen)

    for section, own in by_section(keys).items():
        with ui.column().classes("gap-0"):
            ui.label(f"{section.title} · {len(own)}").classes("section")
            ui.label(section.about).classes("quiet")
        with ui.element("div").classes("charts"):
            for key in own:
                with ui.element("div").classes("panel"):
                    (draw if key in first else later)(key)
                    ui.label(about_key(key)).classes("quiet")


def _open(run: RunData, key: str, place: float) -> None:
    """Go to the trajectories behind the value of the run that is nearest to a place in the chart of a key."""
    steps = run.series[key].steps if key in run.series else []
    at = nearest(steps, place)
    if at is not None and (query := drill_down(run, key, steps[at])):
        ui.navigate.to(run_address(run.name, "trajectories", query))


def _controls(site: Site, choice: Choice) -> _Controls:
    with ui.row().classes("w-full items-center"):
        expression = ui.input("keys (regular expression)", value=choice.match)
        expression.props("debounce=400 outlined dense clearable").classes("grow")
        options = [name for name in site.runs.names() if name != choice.runs[0].name]
        beside = ui.select(
            options, label="runs beside it", multiple=True, value=[r.name for r in choice.runs[1:]]
        )
        beside.props("outlined dense use-chips").style("min-width: 220px")
    with ui.row().classes("w-full items-center gap-4"):
        ui.label("smoothing").classes("quiet")
        smooth = ui.slider(min=0, max=MAX_SMOOTHING, step=0.01, value=choice.smooth)
        smooth.props("label debounce=200 aria-label=smoothing").style("width: 180px")
        log = ui.checkbox("logarithmic", value=choice.logarithmic)
        by = ui.toggle({"step": "by step", "time": "by time"}, value=choice.x)
        by.props("no-caps dense size=sm padding='4px 10px'")
        ui.space()
        save = ui.button("save as CSV", icon="download")
        save.props("outline size=sm no-caps").on_click(lambda: ui.navigate.to(choice.table_address))
    return _Controls(expression, beside, smooth, log, by)


def wanted(choice: Choice) -> list[str]:
    """Keys of any of the runs that match. Raises ValueError with one sentence."""
    return matching({key for run in choice.runs for key in run.series}, choice.match)


def first_of(keys: list[str]) -> frozenset[str]:
    """The keys whose charts are there at once: the first of each section by turns."""
    by_turns = [
        key for row in zip_longest(*by_section(keys).values()) for key in row if key is not None
    ]
    return frozenset(by_turns[:MAX_CHARTS])


def chart(choice: Choice, key: str) -> charts.Options:
    """One key of all runs that have it; beside what is smoothed the values as they are, faint."""
    by_time = choice.x == "time"
    found = []
    for run in choice.runs:
        if (one := run.series.get(key)) is None:
            continue
        begin = run.begin if by_time else None
        if choice.smooth:
            found.append(charts.Curve(run.name, thin(one, begin=begin), faint=True))
            one = smoothed(one, choice.smooth)
        found.append(charts.Curve(run.name, thin(one, begin=begin)))
    return charts.curves(key, found, logarithmic=choice.logarithmic, clock=by_time)


def smoothing(text: str) -> float:
    """Read the smoothing from an address, within its bounds."""
    try:
        value = number(float(text)) if text else None
    except ValueError:
        value = None
    return 0.0 if value is None else min(max(value, 0.0), MAX_SMOOTHING)


def _others(site: Site, run: RunData, names: list[str] | None) -> list[RunData]:
    found = [site.runs.find(name) for name in dict.fromkeys(names or ())]
    return [one for one in found if one is not None and one is not run]


def _keys(choice: Choice) -> list[str]:
    try:
        return wanted(choice)
    except ValueError:
        return []
