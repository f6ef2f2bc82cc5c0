"""`/run/NAME/environments`: the ledger, latency, breakers, mixture, noise and selection per environment."""

from nicegui import ui

from rl.dashboard.environments import (
    KINDS,
    changes,
    environment_charts,
    latency_rows,
    ledger_rows,
    names,
    selection_rows,
)
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import (
    fill,
    frame,
    live,
    no_such_run,
    notice,
    panel,
    read,
    redraw,
    table,
)
from rl.dashboard.run_data import RunData

_LEDGER = (
    ("env", "environment"),
    ("dispatched", "dispatched"),
    *((kind, kind.replace("_", " ")) for kind in KINDS),
    ("share", "trained, share"),
    ("reasons", "reasons"),
)
_LATENCY = (
    ("env", "environment"),
    ("phase", "phase"),
    *((name, name) for name in ("p50", "p95", "p99")),
    ("count", "of how many"),
)
_SELECTION = (
    ("env", "environment"),
    ("fate", "what became of them"),
    ("count", "trajectories"),
    ("tokens", "tokens"),
    ("turns", "turns"),
    ("reward", "reward"),
)
_CHANGES = (("at", "after"), ("what", "what has changed"))


def environments_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str) -> None:
        run = site.runs.find(name)
        if run is None:
            return no_such_run(site, name)
        await read(run)
        with frame(site, run.name, "environments"):
            _content(run)


def _content(run: RunData) -> None:
    empty = ui.column().classes("w-full")
    with empty:
        notice(
            "Nothing has been played yet.",
            "The books begin with the first group of trajectories.",
            "hourglass_empty",
        )
    with ui.column().classes("w-full gap-3") as whole:
        with panel("trajectories: where each of them is"):
            books = table(_LEDGER, "env", ("env", "reasons"))
        drawn: dict[str, ui.echart] = {}
        pictures = ui.element("div").classes("charts")
        with ui.element("div").classes("halves"):
            with panel("seconds per phase, of the last 1,000 in each"):
                latency = table(_LATENCY, "id", ("env", "phase"))
            with panel("selection: who is trained on, and who is not (means)"):
                selection = table(_SELECTION, "id", ("env", "fate"))
        with panel("what supervision has changed"):
            told = table(_CHANGES, "id", ("at", "what"))

    def show() -> None:
        there = bool(names(run))
        empty.set_visibility(not there)
        whole.set_visibility(there)
        fill(books, ledger_rows(run))
        fill(latency, latency_rows(run))
        fill(selection, selection_rows(run))
        fill(told, changes(run))
        found = environment_charts(run)
        if list(found) != list(drawn):
            drawn.clear()
            pictures.clear()
            with pictures:
                for name, options in found.items():
                    with ui.element("div").classes("panel"):
                        drawn[name] = ui.echart(options).style("height: 260px")
        for name, options in found.items():
            redraw(drawn[name], options)

    async def refresh() -> None:
        await read(run)
        show()

    show()
    live(refresh)
