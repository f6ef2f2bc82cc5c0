"""Other tries of a trajectory's task, across policy versions: a chart of their rewards, and a table."""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence

from nicegui import ui

from rl.dashboard import charts
from rl.dashboard.pages.frame import fill, run_address, table
from rl.dashboard.pages.trajectories import trajectory_address
from rl.dashboard.row_details import RowDetails, row_details
from rl.dashboard.run_data import RunData
from rl.dashboard.series import Series
from rl.dashboard.trajectory_index import Hit, tries

# Rows of the table: the first and the last tries.
_MOST_ROWS = 12
_COLUMNS = (
    ("id", "trajectory"),
    ("version", "version"),
    ("split", "split"),
    ("reward", "reward"),
    ("rewards", "named rewards"),
    ("stop", "stopped by"),
    ("tokens", "tokens"),
)
_TEXT = ("id", "split", "rewards", "stop")
# The cell is Vue's: its text is escaped, and its address was made by `run_address`.
_CELL = '<q-td :props="props"><a class="nicegui-link" :href="props.row.address">{{ props.value }}</a></q-td>'


def other_tries(data: RunData, hit: Hit) -> None:
    """Draw them once the page is there, since they are looked for in all of the index."""
    if not hit.task:
        return
    place = ui.column().classes("w-full gap-0")

    async def draw() -> None:
        try:
            found = await asyncio.to_thread(tries, data.folder, hit)
            shown = found if len(found) <= _MOST_ROWS else [*found[:6], *found[-6:]]
            details = await asyncio.to_thread(row_details, data.folder, data.texts, shown)
        except (sqlite3.Error, OSError) as error:
            with place:
                ui.label(f"Other tries of this task cannot be read now: {error}").classes("quiet")
            return
        with place:
            if len(found) < 2:
                ui.label("This task was tried once.").classes("quiet")
            else:
                _content(data, hit, found, shown, details)

    ui.timer(0.05, draw, once=True)


def _content(
    data: RunData,
    hit: Hit,
    found: Sequence[Hit],
    shown: Sequence[Hit],
    details: Mapping[str, RowDetails],
) -> None:
    with ui.column().classes("panel w-full gap-1"):
        with ui.row().classes("items-center gap-2"):
            ui.label(f"{len(found)} tries of this task, the oldest version first").classes("quiet")
            query = [("env", hit.env), ("task", hit.task), ("order", "-version")]
            ui.link("all of them", run_address(data.name, "trajectories", query))
        if len({one.last_version for one in found}) > 1:
            ui.echart(tries_chart(found, hit)).style("height: 180px")
        rows = table(_COLUMNS, "id", _TEXT)
        rows.add_slot("body-cell-id", _CELL)
        fill(
            rows,
            [
                {
                    "id": one.id,
                    "address": trajectory_address(data.name, one.id, []),
                    "version": one.versions,
                    "split": one.split,
                    "reward": "" if one.reward is None else f"{one.reward:.3g}",
                    "rewards": details[one.id].rewards,
                    "stop": one.stop_reason,
                    "tokens": "" if one.tokens is None else f"{one.tokens:,}",
                }
                for one in shown
            ],
        )


def tries_chart(found: Sequence[Hit], hit: Hit) -> charts.Options:
    """The rewards of the tries over the versions that wrote them; the one of the page apart."""
    others, this = Series(), Series()
    for one in found:
        if one.reward is not None and one.last_version is not None:
            series = this if one.id == hit.id else others
            series.steps.append(one.last_version)
            series.values.append(one.reward)
    options = charts.lines(
        "reward by policy version", [("other tries", others), ("this one", this)]
    )
    for one, size in zip(options["series"], (7, 12), strict=True):
        one |= {"type": "scatter", "symbolSize": size}
    return options
