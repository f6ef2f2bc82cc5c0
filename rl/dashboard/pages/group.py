"""`/run/NAME/group/GROUP`: the trajectories of one task side by side."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from nicegui import ui

from rl.dashboard.page import Site
from rl.dashboard.pages.frame import frame, no_such_run, notice, unreadable_index
from rl.dashboard.pages.message_view import STYLE, message, rewards_text, said, turn_messages
from rl.dashboard.pages.trajectories import trajectory_address
from rl.dashboard.run_data import RunData
from rl.dashboard.trajectory_index import MAX_MEMBERS, Hit, group
from rl.dashboard.trajectory_record import TrajectoryView, Unreadable, read_record

# Of each member: turns, and characters of a text.
_MAX_TURNS, _MAX_TEXT = 30, 3000


def group_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str, group_id: str) -> None:
        data = site.runs.find(name)
        if data is None:
            return no_such_run(site, name)
        with frame(site, name, "trajectories"):
            ui.add_css(STYLE)
            try:
                found = await asyncio.to_thread(_read, data.folder, group_id)
            except (sqlite3.Error, OSError) as error:
                return unreadable_index(error)
            if not found:
                notice(
                    f"There is no group {group_id[:200]!r} in the index.",
                    "A group is there when its last episode is finished.",
                    "search_off",
                )
                return
            _content(data, group_id, found)


def _read(folder: Path, name: str) -> list[tuple[Hit, TrajectoryView | str]]:
    """Members with their records, or why one cannot be shown."""
    return [(one, _record(folder, one)) for one in group(folder, name)]


def _record(folder: Path, one: Hit) -> TrajectoryView | str:
    try:
        return read_record(folder, one)
    except Unreadable as error:
        return str(error)


def _content(data: RunData, name: str, found: Sequence[tuple[Hit, TrajectoryView | str]]) -> None:
    first = found[0][0]
    ui.label(f"Group {name[:200]}").classes("number")
    more = f"; more than {MAX_MEMBERS} are not shown" if len(found) == MAX_MEMBERS else ""
    ui.label(
        f"{first.env}, {first.split}, task {first.task}, {len(found)} trajectories{more}"
    ).classes("quiet")
    opening = next((view.opening for _, view in found if isinstance(view, TrajectoryView)), ())
    with ui.column().classes("panel w-full gap-2"):
        for one in opening:
            said(one)
    with ui.row().classes("w-full no-wrap items-stretch gap-3").style("overflow-x: auto"):
        for hit, view in found:
            with ui.column().classes("panel gap-2").style("min-width: 320px; flex: 1 1 0"):
                _member(data, hit, view)


def _member(data: RunData, hit: Hit, view: TrajectoryView | str) -> None:
    ui.link(hit.id, trajectory_address(data.name, hit.id, [])).classes("text-bold")
    ui.label("no reward" if hit.reward is None else f"reward {hit.reward:.4g}").classes("number")
    if isinstance(view, str):
        notice(view, icon="error")
        return
    ui.label(f"rewards: {rewards_text(view)}").classes("quiet")
    ui.label(
        f"{hit.stop_reason}; {hit.outcome or 'no outcome'}; {len(view.turns)} turns, {hit.tokens} tokens; "
        f"version {hit.versions}"
    ).classes("quiet")
    for turn in view.turns[:_MAX_TURNS]:
        turn_messages(turn, _MAX_TEXT)
    if len(view.turns) > _MAX_TURNS:
        ui.label(f"… and {len(view.turns) - _MAX_TURNS} turns more").classes("quiet")
    if view.fault:
        message("fault", view.fault, "fault", most=_MAX_TEXT)
