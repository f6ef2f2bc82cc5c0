"""`/run/NAME`: one run at a glance: is it learning, is it stable, how fast is it."""

from collections.abc import Sequence

from nicegui import run as ng_run
from nicegui import ui

from rl.dashboard.alerts import alerts
from rl.dashboard.changes import said_changes
from rl.dashboard.drill_down import Query, drill_down, evaluation_query, nearest
from rl.dashboard.learning import HELD_OUT, REWARD, STABILITY
from rl.dashboard.overview import (
    command,
    commit,
    figures,
    held_out_rows,
    overview_charts,
    trajectory_rows,
)
from rl.dashboard.page import Site
from rl.dashboard.pages.chart_click import on_place
from rl.dashboard.pages.frame import (
    alert_rows,
    fill,
    frame,
    live,
    no_such_run,
    notice,
    read,
    redraw,
    run_address,
    table,
    tile,
)
from rl.dashboard.run_data import RunData

_HELD_OUT = (
    ("env", "environment"),
    ("before", "before"),
    ("after", "now"),
    ("best", "best, at version"),
    ("gain", "gain"),
)
_TRAJECTORIES = (
    ("env", "environment"),
    ("split", "split"),
    ("trajectories", "trajectories"),
    ("faults", "faults"),
    ("reward", "reward"),
)
_FAST = ("throughput", "staleness", "split", "sync")
# The metric that a click leads on from, of charts that are not in the stability panel.
_KEYS = {
    REWARD: "rollout/all/reward",
    "throughput": "rollout/all/tokens",
    "staleness": "staleness/mean",
    "split": "time/total_seconds",
    "sync": "time/sync_seconds",
}
# Sentences on changes that are shown.
_MOST_CHANGES = 8
_STYLE = """
.learning { display: grid; gap: 12px; width: 100%; }
.learning { grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); }
.stable { display: grid; gap: 12px; width: 100%; }
.stable { grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.command { font: 12px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
"""


def overview_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str) -> None:
        run = site.runs.find(name)
        if run is None:
            return no_such_run(site, name)
        await read(run)
        with frame(site, run.name):
            ui.add_css(_STYLE)
            _content(run)


def _content(run: RunData) -> None:
    said: list[object] = []
    head = _head(run)
    drawn: dict[str, ui.echart] = {}
    options = overview_charts(run)

    def draw(names: Sequence[str], height: int) -> None:
        for name in names:
            with ui.element("div").classes("panel"):
                drawn[name] = ui.echart(options[name]).style(f"height: {height}px")
                on_place(drawn[name], lambda place, name=name: _open(run, name, place))
                if name in STABILITY:
                    ui.label(STABILITY[name].remark).classes("quiet")

    ui.label("Is it learning?").classes("section")
    with ui.element("div").classes("learning"):
        draw((HELD_OUT, REWARD), 300)
    changed = ui.column().classes("gap-0")
    with ui.element("div").classes("panel w-full"):
        ui.label("held-out pass rate, with its 95 % interval").classes("quiet")
        held_out = table(_HELD_OUT, "env", ("env",))
    ui.label("Is it stable? A click in a chart opens the trajectories of that step.").classes(
        "section"
    )
    with ui.element("div").classes("stable"):
        draw(tuple(STABILITY), 190)
    ui.label("How fast is it?").classes("section")
    with ui.element("div").classes("charts"):
        draw(_FAST, 230)
        with ui.element("div").classes("panel"):
            ui.label("trajectories").classes("quiet")
            played = table(_TRAJECTORIES, "id", ("env", "split"))

    def fill_in() -> None:
        fill(held_out, held_out_rows(run))
        fill(played, trajectory_rows(run))

    async def refresh() -> None:
        await read(run)
        await ng_run.io_bound(run.look_for_changes)
        found = sorted(said_changes(run.changes), key=lambda change: change.step)
        sentences = [change.sentence for change in found[-_MOST_CHANGES:]]
        if said != (now := [*figures(run), *alerts(run), *sentences]):
            said[:] = now
            head.refresh()
            changed.clear()
            with changed:
                for sentence in sentences:
                    ui.label(sentence).classes("quiet")
        for name, one in overview_charts(run).items():
            redraw(drawn[name], one)
        fill_in()

    fill_in()
    live(refresh)


def _head(run: RunData) -> ui.refreshable:
    """The figures, the progress, how it was begun, and the alerts."""

    @ui.refreshable
    def head() -> None:
        with ui.element("div").classes("tiles"):
            for figure in figures(run):
                tile(figure.name, figure.value, figure.remark)
        if run.steps:
            share = min(1.0, run.step / run.steps)
            ui.linear_progress(share, show_value=False).props("rounded aria-label=progress")
        _origin(run)
        if not run.series:
            notice(
                "No metrics yet.",
                "Cold start and the start of the engines come first and can take minutes; the log files of "
                "the run say how far they are.",
                "hourglass_empty",
            )
        alert_rows(alerts(run), run.name)

    head()
    return head


def _origin(run: RunData) -> None:
    """The command that began the run, to be copied, and the commit."""
    line, code = command(run), commit(run)
    if not line:
        return
    with ui.row().classes("w-full items-center gap-2 no-wrap"):
        ui.label(line).classes("quiet command")
        button = ui.button("copy command", icon="content_copy", on_click=lambda: _copy(line))
        button.props("flat dense size=sm no-wrap")
        if code:
            ui.label(f"commit {code}").classes("quiet leads")


def _copy(text: str) -> None:
    ui.clipboard.write(text)
    ui.notify("Copied.")


def _open(run: RunData, name: str, place: float) -> None:
    """Go to the trajectories behind a place in a chart."""
    if query := behind(run, name, place):
        ui.navigate.to(run_address(run.name, "trajectories", query))


def behind(run: RunData, name: str, place: float) -> Query:
    """The query of the trajectories behind a place in a chart of the page; [] where there are none."""
    if name == HELD_OUT and run.evaluations:
        return evaluation_query(run, nearest([row.version for row in run.evaluations], place))
    if name == HELD_OUT:  # of a release that evaluated before and after training only
        return [("split", "heldout-before" if place < run.step / 2 else "heldout-after")]
    key = STABILITY[name].lines[0][1] if name in STABILITY else _KEYS[name]
    steps = run.series[key].steps if key in run.series else []
    at = nearest(steps, place)
    return [] if at is None else drill_down(run, key, steps[at])
