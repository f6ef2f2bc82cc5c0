"""`/run/NAME/metrics?match=EXPRESSION&also=RUN`: keys found by expression, several runs in a chart."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query
from nicegui import ui

from rl.dashboard import charts
from rl.dashboard.page_frame import (
    frame,
    live,
    no_such_run,
    notice,
    read,
    redraw,
    run_address,
)
from rl.dashboard.run_data import RunData, RunsFolder
from rl.dashboard.series import matching

FIRST_MATCH = "reward$|^loss/|^time/|^staleness/"
# More charts than this make a page slow, and nobody reads them.
MAX_CHARTS = 24


@dataclass
class Choice:
    """What the page shows: the runs, the first of which it is about, and the expression."""

    runs: list[RunData]
    match: str

    @property
    def address(self) -> str:
        """The address that shows the same."""
        query = [("match", self.match), *(("also", run.name) for run in self.runs[1:])]
        return run_address(self.runs[0].name, "metrics", query)


def metrics_page(runs: RunsFolder) -> None:
    """Register the page."""

    @ui.page("/run/{name}/metrics", response_timeout=60)
    async def page(
        name: str, match: str = FIRST_MATCH, also: Annotated[list[str] | None, Query()] = None
    ) -> None:
        run = runs.find(name)
        if run is None:
            return no_such_run(runs, name)
        others = [found for other in also or () if (found := runs.find(other)) not in (None, run)]
        choice = Choice([run, *(one for one in others if one is not None)], match)
        await read(*choice.runs)
        with frame(runs, run.name, "metrics"):
            if missing := [other for other in also or () if runs.find(other) is None]:
                notice(f"There is no run named {', '.join(map(repr, missing))}.", icon="search_off")
            _content(runs, choice)


def _content(runs: RunsFolder, choice: Choice) -> None:
    drawn: dict[str, ui.echart] = {}

    @ui.refreshable
    def panels() -> None:
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
            more = "" if len(keys) <= MAX_CHARTS else f"; the first {MAX_CHARTS} are drawn"
            ui.label(f"{len(keys)} of {every} keys{more}").classes("quiet")
        with ui.element("div").classes("charts"):
            for key in keys[:MAX_CHARTS]:
                with ui.element("div").classes("panel"):
                    drawn[key] = ui.echart(chart(choice, key)).style("height: 230px")

    async def choose(match: str, names: list[str]) -> None:
        others = [one for name in names if (one := runs.find(name)) is not None]
        choice.runs[1:], choice.match = others, match
        await read(*choice.runs)
        ui.navigate.history.replace(choice.address)
        panels.refresh()

    async def refresh() -> None:
        await read(*choice.runs)
        if list(drawn) != _keys(choice)[:MAX_CHARTS]:
            panels.refresh()
        for key, shown in drawn.items():
            redraw(shown, chart(choice, key))

    with ui.row().classes("w-full items-center"):
        expression = ui.input("keys (regular expression)", value=choice.match)
        expression.props("debounce=400 outlined dense clearable").classes("grow")
        options = [name for name in runs.names() if name != choice.runs[0].name]
        beside = ui.select(
            options, label="runs beside it", multiple=True, value=[r.name for r in choice.runs[1:]]
        )
        beside.props("outlined dense use-chips").style("min-width: 220px")
    for control in (expression, beside):
        control.on_value_change(lambda: choose(expression.value or "", beside.value or []))
    panels()
    live(refresh)


def wanted(choice: Choice) -> list[str]:
    """Keys of any of the runs that match. Raises ValueError with one sentence."""
    return matching({key for run in choice.runs for key in run.series}, choice.match)


def chart(choice: Choice, key: str) -> charts.Options:
    """One key of all runs that have it."""
    return charts.lines(
        key,
        [(run.name, one) for run in choice.runs if (one := run.series.get(key)) is not None],
    )


def _keys(choice: Choice) -> list[str]:
    try:
        return wanted(choice)
    except ValueError:
        return []
