"""`/compare?run=NAME&run=NAME`: chosen runs side by side; seeds of one setting as a mean with a band."""

from typing import Annotated

from fastapi import Query
from nicegui import ui

from rl.dashboard import charts
from rl.dashboard.comparison import KEYS, Group, band, groups, result, verdicts
from rl.dashboard.intervals import add_band
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import (
    fill,
    frame,
    live,
    notice,
    panel,
    read,
    redraw,
    run_address,
    table,
)
from rl.dashboard.run_data import RunData

# Runs that are compared at most.
MOST = 40
_VERDICTS = (("text", "how sure"), ("difference", "difference (95 % interval)"))
_GROUPS = (
    ("name", "runs"),
    ("runs", "their names"),
    ("result", "result"),
    ("what", "of"),
)


def compare_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(run: Annotated[list[str] | None, Query()] = None) -> None:
        asked = list(dict.fromkeys(run or ()))[:MOST]
        found = [one for name in asked if (one := site.runs.find(name)) is not None]
        await read(*found)
        with frame(site):
            if missing := [name for name in asked if site.runs.find(name) is None]:
                notice(f"There is no run named {', '.join(map(repr, missing))}.", icon="search_off")
            if len(found) < 2:
                notice("Choose two runs or more.", "The table of runs has a box for each.")
                ui.link("All runs", "/")
                return
            _content(found)


def _content(runs: list[RunData]) -> None:
    ui.label(f"{len(runs)} runs compared").classes("number")
    with panel("which is better"):
        said = table(_VERDICTS, "text", ("text",))
        ui.label(
            "Draws around each result: of one run by the bootstrap over its held-out tasks, which says "
            "nothing of another seed; of several seeds by Student's t."
        ).classes("quiet")
    with panel("groups: runs that differ by their seed alone"):
        rows = table(_GROUPS, "name", ("name", "runs", "what"))
    first, *others = runs
    query = [*(("also", one.name) for one in others), ("differing", "1")]
    with ui.row().classes("gap-4"):
        ui.link("settings that differ", run_address(first.name, "config", query))
        also = [("also", one.name) for one in others]
        ui.link("all metrics side by side", run_address(first.name, "metrics", also))
    drawn: dict[str, ui.echart] = {}
    with ui.element("div").classes("charts"):
        for key in KEYS:
            with ui.element("div").classes("panel"):
                drawn[key] = ui.echart({}).style("height: 280px")

    def show() -> None:
        found = groups(runs)
        fill(said, verdict_rows(found))
        fill(rows, group_rows(found))
        for key, one in drawn.items():
            redraw(one, band_chart(found, key))

    async def refresh() -> None:
        await read(*runs)
        show()

    show()
    live(refresh)


def verdict_rows(found: list[Group]) -> list[dict[str, str]]:
    """A sentence for every two groups."""
    rows = []
    for one in verdicts(found):
        better, worse, sure = one.first, one.second, one.probability
        difference, low, high = one.difference, one.low, one.high
        if sure < 0.5:
            better, worse, sure = worse, better, 1 - sure
            difference, low, high = -difference, -high, -low
        said = "more than 0.999" if sure > 0.999 else f"{sure:.3g}"
        rows.append(
            {
                "text": f"{better} is better than {worse} with probability {said}",
                "difference": f"{difference:+.3f} ({low:+.3f} to {high:+.3f})",
            }
        )
    return rows


def group_rows(found: list[Group]) -> list[dict[str, str]]:
    """The groups with their results."""
    rows = []
    for group in found:
        one = result(group)
        rows.append(
            {
                "name": group.name,
                "runs": ", ".join(run.name for run in group.runs),
                "result": "-" if one is None else f"{one.mean:.3f} ± {one.error:.3f}",
                "what": "" if one is None else one.what,
            }
        )
    return rows


def band_chart(found: list[Group], key: str) -> charts.Options:
    """One metric of all groups."""
    bands = [(group.name, *band(group, key)) for group in found]
    options = charts.lines(KEYS[key], [(name, one) for name, one, _ in bands])
    options["legend"]["show"] = True
    options["grid"]["bottom"] = 34
    for number, (_, _, around) in enumerate(bands):
        if around:
            add_band(options, around, charts.COLOURS[number % len(charts.COLOURS)])
    return options
