"""`/run/NAME/config?also=RUN&match=TEXT&differing=1`: settings, their origin, how other runs differ."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query
from nicegui import ui

from rl.dashboard.page import Site
from rl.dashboard.pages.frame import (
    fill,
    frame,
    live,
    no_such_run,
    notice,
    read,
    run_address,
    table,
)
from rl.dashboard.run_data import RunData
from rl.dashboard.settings import setting_rows

# A cell whose value differs is marked; its text is Vue's, which escapes it.
_CELL = (
    """<q-td :props="props" :class="props.row.differs ? 'differs' : ''">{{ props.value }}</q-td>"""
)
_MAX_OTHERS = 6


@dataclass
class Choice:
    """State of the page: the runs, the first of which it is about; which keys."""

    runs: list[RunData]
    match: str
    differing: bool

    @property
    def address(self) -> str:
        """The address that shows the same."""
        query = [("also", run.name) for run in self.runs[1:]]
        query += [("match", self.match)] if self.match else []
        query += [("differing", "1")] if self.differing else []
        return run_address(self.runs[0].name, "config", query)


def config_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(
        name: str,
        match: str = "",
        differing: str = "",
        also: Annotated[list[str] | None, Query()] = None,
    ) -> None:
        run = site.runs.find(name)
        if run is None:
            return no_such_run(site, name)
        others = [
            found for other in also or () if (found := site.runs.find(other)) not in (None, run)
        ]
        chosen = [run, *(one for one in others if one is not None)][: _MAX_OTHERS + 1]
        choice = Choice(chosen, match, differing == "1")
        await read(*choice.runs)
        with frame(site, run.name, "config"):
            if missing := [other for other in also or () if site.runs.find(other) is None]:
                notice(f"There is no run named {', '.join(map(repr, missing))}.", icon="search_off")
            _content(site, choice)


def _content(site: Site, choice: Choice) -> None:
    @ui.refreshable
    def settings() -> None:
        first, *others = choice.runs
        named = [(f"other{index}", run.name) for index, run in enumerate(others)]
        columns = (("key", "key"), ("value", first.name), ("origin", "from"), *named)
        rows = found()
        ui.label(f"{len(rows)} settings").classes("quiet")
        if not first.config:
            notice("config.toml cannot be read.", "It is written when the run starts.", "error")
        elif not rows:
            notice("No setting is like this.", "Take out the filter, or show those alike too.")
        shown = table(columns, "key", tuple(name for name, _ in columns))
        shown.classes("panel settings")
        for name in ("value", *(name for name, _ in named)):
            shown.add_slot(f"body-cell-{name}", _CELL)
        fill(shown, rows)

    def found() -> list[dict[str, object]]:
        first, *others = choice.runs
        return setting_rows(first, others, match=choice.match, differing=choice.differing)

    async def choose() -> None:
        names = (beside.value or [])[:_MAX_OTHERS]
        choice.runs[1:] = [one for name in names if (one := site.runs.find(name)) is not None]
        choice.match, choice.differing = text.value or "", bool(only.value)
        await read(*choice.runs)
        ui.navigate.history.replace(choice.address)
        settings.refresh()

    async def refresh() -> None:
        before = found()
        await read(*choice.runs)
        if found() != before:
            settings.refresh()

    with ui.row().classes("w-full items-center"):
        text = ui.input("keys that contain", value=choice.match)
        text.props("debounce=400 outlined dense clearable").classes("grow")
        options = [name for name in site.runs.names() if name != choice.runs[0].name]
        beside = ui.select(
            options,
            label="compared with",
            multiple=True,
            value=[run.name for run in choice.runs[1:] if run.name in options],
        )
        beside.props("outlined dense use-chips").style("min-width: 220px")
        only = ui.checkbox("only what differs", value=choice.differing)
    for control in (text, beside, only):
        control.on_value_change(choose)
    settings()
    live(refresh)
