"""`/run/NAME/environments`: the ledger, latency, breakers, mixture, noise and selection per environment."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote

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
    run_address,
    table,
)
from rl.dashboard.run_data import RunData
from rl.dashboard.tool_tables import used_tools

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
_TOOLS = (
    ("env", "environment"),
    ("tool", "tool"),
    ("calls", "calls"),
    ("errors", "errors"),
    ("share", "share of errors"),
    ("mean", "seconds, mean"),
    ("longest", "longest"),
    ("example", "an example"),
    ("arguments", "its arguments"),
)
_ERRORS = (
    ("env", "environment"),
    ("tool", "tool"),
    ("error", "what it answered (# for numbers)"),
    ("times", "times"),
    ("example", "an example"),
)
_FAULTS = (
    ("env", "environment"),
    ("stop", "kind"),
    ("fault", "fault (# for numbers)"),
    ("times", "times"),
    ("example", "an example"),
)
# The cell is Vue's: its text is escaped, and the address was made by `run_address`.
_LINK = '<q-td :props="props"><a class="nicegui-link" :href="props.row.address">{{ props.value }}</a></q-td>'
# Seconds that a look at the run spends on reading records for the tables of tools.
_READ_SECONDS = 1.0


def environments_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str) -> None:
        run = site.runs.find(name)
        if run is None:
            return no_such_run(site, name)
        await read(run)
        with frame(site, run.name, "environments"):
            await _content(run)


async def _content(run: RunData) -> None:
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
        look_at_tools = _tool_panels(run)
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
    await look_at_tools()
    live(look_at_tools)


def _tool_panels(run: RunData) -> Callable[[], Awaitable[None]]:
    """Draw the tables of tools and faults. Returns what reads records for a while and fills them."""
    with panel("tools: calls, errors, seconds of a call (a turn's, in equal parts of its calls)"):
        progress = ui.label().classes("quiet")
        tools = _linked(_TOOLS, ("env", "tool", "example", "arguments"))
    with ui.element("div").classes("halves"):
        with panel("what tools answered with an error"):
            errors = _linked(_ERRORS, ("env", "tool", "error", "example"))
        with panel("faults that are not the policy's, in all"):
            faults = _linked(_FAULTS, ("env", "stop", "fault", "example"))

    async def look() -> None:
        try:
            await asyncio.to_thread(run.texts.grow, _READ_SECONDS)
            found = await asyncio.to_thread(used_tools, run)
        except (sqlite3.Error, OSError) as error:
            progress.set_text(f"The records cannot be read now: {error}")
            return
        progress.set_text(found.progress)
        fill(tools, [linked(run.name, row) for row in found.tools])
        fill(errors, [linked(run.name, row) for row in found.errors])
        fill(faults, [linked(run.name, row) for row in found.faults])

    return look


def _linked(columns: Sequence[tuple[str, str]], text: Sequence[str]) -> ui.table:
    """A table whose examples lead to their trajectories."""
    made = table(columns, "id", text)
    made.add_slot("body-cell-example", _LINK)
    return made


def linked(name: str, row: dict[str, str]) -> dict[str, str]:
    """The row with the address of its example."""
    example = quote(row["example"], safe="")
    return row | {"address": run_address(name, f"trajectory/{example}")}
