"""`/run/NAME`: one run at a glance."""

from nicegui import run as ng_run
from nicegui import ui

from rl.dashboard.alerts import alerts
from rl.dashboard.overview import (
    figures,
    held_out_rows,
    overview_charts,
    trajectory_rows,
)
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import (
    alert_rows,
    fill,
    frame,
    live,
    no_such_run,
    notice,
    read,
    redraw,
    table,
    tile,
)
from rl.dashboard.run_data import RunData

_HELD_OUT = (("env", "environment"), ("before", "before"), ("after", "after"), ("gain", "gain"))
_TRAJECTORIES = (
    ("env", "environment"),
    ("split", "split"),
    ("trajectories", "trajectories"),
    ("faults", "faults"),
    ("reward", "reward"),
)


def overview_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str) -> None:
        run = site.runs.find(name)
        if run is None:
            return no_such_run(site, name)
        await read(run)
        with frame(site, run.name):
            _content(run)


def _content(run: RunData) -> None:
    said: list[object] = []

    @ui.refreshable
    def head() -> None:
        with ui.element("div").classes("tiles"):
            for figure in figures(run):
                tile(figure.name, figure.value, figure.remark)
        if run.steps:
            share = min(1.0, run.step / run.steps)
            ui.linear_progress(share, show_value=False).props("rounded aria-label=progress")
        if not run.series:
            notice(
                "No metrics yet.",
                "Cold start and the start of the engines come first and can take minutes; the log files of "
                "the run say how far they are.",
                "hourglass_empty",
            )
        alert_rows(alerts(run), run.name)

    head()
    drawn: dict[str, ui.echart] = {}
    with ui.element("div").classes("charts"):
        for key, options in overview_charts(run).items():
            with ui.element("div").classes("panel"):
                drawn[key] = ui.echart(options).style("height: 260px")
        with ui.element("div").classes("panel"):
            ui.label("held-out pass rate").classes("quiet")
            held_out = table(_HELD_OUT, "env", ("env",))
        with ui.element("div").classes("panel"):
            ui.label("trajectories").classes("quiet")
            played = table(_TRAJECTORIES, "id", ("env", "split"))

    def fill_in() -> None:
        fill(held_out, held_out_rows(run))
        fill(played, trajectory_rows(run))

    async def refresh() -> None:
        await read(run)
        await ng_run.io_bound(run.look_for_changes)
        if said != (now := [*figures(run), *alerts(run)]):
            said[:] = now
            head.refresh()
        for key, options in overview_charts(run).items():
            redraw(drawn[key], options)
        fill_in()

    fill_in()
    live(refresh)
