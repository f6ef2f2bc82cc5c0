"""`/run/NAME/trajectories?env=&reward_min=&…`: the trajectories of a run, filtered, and their rewards."""

import asyncio
import sqlite3
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import quote

from fastapi import Request
from nicegui import events, ui

from rl.dashboard import charts
from rl.dashboard.drill_down import in_time
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import (
    fill,
    frame,
    live,
    no_such_run,
    notice,
    redraw,
    run_address,
    table,
)
from rl.dashboard.pages.question import Question
from rl.dashboard.row_details import RowDetails, row_details
from rl.dashboard.run_data import RunData
from rl.dashboard.trajectory_counts import ask
from rl.dashboard.trajectory_filter import (
    NEWEST,
    NO_OUTCOME,
    ORDERS,
    WITH,
    WITHOUT,
    TrajectoryFilter,
    read_filter,
)
from rl.dashboard.trajectory_index import (
    PAGE_ROWS,
    Choices,
    Hit,
    RewardBar,
    Tally,
    choices,
    hits,
    tally,
)

# Seconds after which a question that took long is asked again at the latest, since what is new has to show.
_HITS_REST, _TALLY_REST = 1.0, 60.0
# Names of columns that can be sorted by are those of the orders.
_COLUMNS = (
    ("id", "trajectory"),
    ("env", "environment"),
    ("split", "split"),
    ("words", "task"),
    ("reward", "reward"),
    ("rewards", "named rewards"),
    ("advantage", "advantage"),
    ("stop", "stopped by"),
    ("outcome", "outcome"),
    ("version", "version"),
    ("turns", "turns"),
    ("tokens", "tokens"),
    ("seconds", "seconds"),
    ("newest", "begun"),
    ("fault", "fault"),
)
_TEXT = ("id", "env", "split", "words", "rewards", "stop", "outcome", "fault")
# A cell is Vue's: its text is escaped, and its address was made by `run_address`.
_CELL = (
    '<q-td :props="props"><a class="nicegui-link" :href="props.row.%s">{{ props.value }}</a></q-td>'
)
_PICKED = {
    "env": "environment",
    "split": "split",
    "stop": "stopped by",
    "outcome": "outcome",
    "fault": "fault",
}
_TYPED = {
    "reward_min": "reward",
    "reward_max": "to",
    "version": "version",
    "tokens_min": "tokens",
    "tokens_max": "to",
    "step": "trained in step",
    "during": "in time of step",
}
_WITHIN = {
    "": "anywhere",
    "messages": "in messages",
    "tools": "in tool calls",
    "errors": "in errors",
}
# Seconds that a look at a run spends on reading texts for the search.
_READ_SECONDS = 1.0


@dataclass(frozen=True)
class Answer:
    """Answer of the index: a page of hits, their number and rewards, and what there is to choose from."""

    hits: list[Hit]
    tally: Tally
    choices: Choices
    details: dict[str, RowDetails]


def trajectories_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str, request: Request) -> None:
        found = site.runs.find(name)
        if found is None:
            return no_such_run(site, name)
        with frame(site, name, "trajectories"):
            await _Page(found, read_filter(request.query_params)).open()


class _Page:
    """The page of one visitor: controls, what they ask for, and what was answered last."""

    def __init__(self, data: RunData, asked: TrajectoryFilter) -> None:
        self.data, self.asked = data, asked
        self.answer = Answer([], Tally(0, ()), Choices(), {})
        self._hits: Question[tuple[list[Hit], dict[str, RowDetails]]] = Question(_HITS_REST)
        self._tally: Question[tuple[Tally, Choices]] = Question(_TALLY_REST)
        self._controls: dict[str, ui.select | ui.input] = {}
        self._set: TrajectoryFilter | None = None
        self._unread = ""

    async def open(self) -> None:
        """Draw it."""
        ui.add_css(".q-table td { max-width: 240px; overflow: hidden; text-overflow: ellipsis; }")
        with ui.row().classes("w-full items-center gap-2"):
            words = ui.input("words in messages, tool calls, errors")
            words.props("outlined dense debounce=400 clearable")
            self._controls["text"] = words.classes("grow").style("min-width: min(280px, 100%)")
            within = ui.select(_WITHIN, label="where", value="").style("min-width: 124px")
            self._controls["within"] = within.props("outlined dense options-dense")
            task = ui.input("task").props("outlined dense debounce=500").style("width: 150px")
            self._controls["task"] = task
        with ui.row().classes("w-full items-center gap-2"):
            for name, label in _PICKED.items():
                picked = ui.select({"": "any"}, label=label, value="").style("min-width: 112px")
                self._controls[name] = picked.props("outlined dense options-dense")
            for name, label in _TYPED.items():
                typed = ui.input(label).props("outlined dense debounce=500 type=number step=any")
                self._controls[name] = typed.style(f"width: {max(88, 9 * len(label))}px")
            ui.button("clear", on_click=self._clear).props("flat dense")
        with ui.element("div").classes("panel w-full"):
            self._chart = ui.echart(histogram((), self.asked), on_point_click=self._clicked)
            self._chart.style("height: 170px; cursor: pointer")
        self._said = ui.label().classes("quiet")
        self._empty = ui.column().classes("w-full")
        self._table = table(_COLUMNS, "id", _TEXT)
        self._table.props(remove="hide-pagination")
        self._table.props(f":rows-per-page-options='[{PAGE_ROWS}]' binary-state-sort")
        for column in self._table.columns:
            column["sortable"] = column["name"] in ORDERS
        self._table.add_slot("body-cell-id", _CELL % "address")
        self._table.add_slot("body-cell-words", _CELL % "group_address")
        self._table.on("request", self._requested)
        await self._read()
        for control in self._controls.values():
            control.on_value_change(self._chosen)
        live(self._read, times=2)
        live(self._grow)

    async def _grow(self) -> None:
        """Read texts for the search, for a while."""
        try:
            await asyncio.to_thread(self.data.texts.grow, _READ_SECONDS)
        except (sqlite3.Error, OSError):
            return  # tried again at the next look; the number of texts that are read stays

    async def _ask(self, asked: TrajectoryFilter) -> None:
        """Show something else."""
        if asked == self.asked:
            return
        self.asked = asked
        ui.navigate.history.replace(run_address(self.data.name, "trajectories", asked.query))
        await self._read()

    async def _read(self) -> None:
        """Read what is new, if anything is, and show it."""
        asked, folder, texts = self.asked, self.data.folder, self.data.texts

        def page() -> tuple[list[Hit], dict[str, RowDetails]]:
            found = hits(folder, in_time(self.data, asked), texts.path)
            return found, row_details(folder, texts, found)

        def counts() -> tuple[Tally, Choices]:
            return tally(folder, in_time(self.data, about), texts.path), choices(folder)

        try:
            found, details = await self._hits.answer(folder, asked, page, texts.path)
            about = replace(asked, order=NEWEST, page=1)  # neither changes what is counted
            more = await self._tally.answer(
                folder, about, counts, texts.path if asked.text else None
            )
            self._unread = await asyncio.to_thread(self._texts_unread) if asked.text else ""
        except (sqlite3.Error, OSError) as error:
            self._said.set_text(f"trajectories.sqlite cannot be read now: {error}")
            return
        if asked is self.asked:  # else somebody has asked for something else meanwhile
            self.answer = Answer(found, *more, details)
            self._draw()

    def _draw(self) -> None:
        answer, asked = self.answer, self.asked
        self._set_controls()
        redraw(self._chart, histogram(answer.tally.bars, asked))
        self._said.set_text(f"{answer.tally.hits:,} trajectories{steps_said(asked)}{self._unread}")
        nothing = RowDetails()
        fill(
            self._table,
            [
                row(self.data.name, one, asked, answer.details.get(one.id, nothing))
                for one in answer.hits
            ],
        )
        paging = {
            "page": asked.page,
            "rowsPerPage": PAGE_ROWS,
            "rowsNumber": answer.tally.hits,
            "sortBy": asked.order.removeprefix("-"),
            "descending": not asked.lowest_first,
        }
        if self._table.pagination != paging:
            self._table.pagination = paging
        self._table.set_visibility(bool(answer.hits))
        self._empty.clear()
        if not answer.hits:
            with self._empty:
                _nothing(answer, asked)

    def _set_controls(self) -> None:
        """Set the controls to the filter where something else has changed it; a visitor's choice stays."""
        for name, control in self._controls.items():
            value = getattr(self.asked, name)
            if isinstance(control, ui.select) and name in _PICKED:
                options = options_of(name, self.answer.choices, value)
                if control.options != options:
                    control.set_options(options)
            if self.asked != self._set:
                told = value if isinstance(control, ui.select) else _said(value)
                control.set_value(told)
        self._set = self.asked

    def _texts_unread(self) -> str:
        """Say how many texts are not read yet, since a search does not find them."""
        last = ask(self.data.folder, "select max(rowid) from trajectories")
        whole, there = (last[0][0] or 0) if last else 0, self.data.texts.read()
        return f"; texts of {there:,} of {whole:,} are read" if there < whole else ""

    async def _chosen(self) -> None:
        """A control was used."""
        values: dict[str, str] = {}
        for name, control in self._controls.items():
            said = str(control.value or "")
            values[name] = said if isinstance(control, ui.select) else said.strip()
        chosen = read_filter({**values, "ids": self.asked.ids, "order": self.asked.order})
        # A bar's ends have more digits than a field shows; they stay until the field says another number.
        kept = {
            name: getattr(self.asked, name)
            for name in _TYPED
            if getattr(self.asked, name) is not None
            and _said(getattr(self.asked, name)) == values[name]
        }
        chosen = replace(chosen, **kept)
        if replace(chosen, page=self.asked.page) != self.asked:
            await self._ask(chosen)

    async def _clicked(self, event: events.EChartPointClickEventArguments) -> None:
        bars = self.answer.tally.bars
        if not 0 <= event.data_index < len(bars):
            return
        bar = bars[event.data_index]
        ends: tuple[float | None, float | None] = (bar.low, bar.high)
        if (self.asked.reward_min, self.asked.reward_max) == ends:
            ends = (None, None)  # the same bar again: any reward
        await self._ask(replace(self.asked, reward_min=ends[0], reward_max=ends[1], page=1))

    async def _requested(self, event: events.GenericEventArguments) -> None:
        """Another page, or another order, by the table's own controls."""
        wanted = event.args["pagination"]
        order = wanted["sortBy"] if wanted["sortBy"] in ORDERS else NEWEST
        page = max(1, int(wanted["page"]))
        order = order if wanted["descending"] else f"-{order}"
        await self._ask(replace(self.asked, order=order, page=page))

    async def _clear(self) -> None:
        await self._ask(TrajectoryFilter(order=self.asked.order))


def steps_said(asked: TrajectoryFilter) -> str:
    """Says which step, or which chosen trajectories, the filter is about; "" for none."""
    if asked.ids:
        return f", of {asked.ids.count(',') + 1} that were chosen"
    if asked.during is not None:
        return f", finished in the time of step {asked.during}"
    return "" if asked.step is None else f", of step {asked.step}"


def row(name: str, one: Hit, asked: TrajectoryFilter, details: RowDetails) -> dict[str, str]:
    """One trajectory in the table."""
    return {
        "id": one.id,
        "address": trajectory_address(name, one.id, asked.query),
        "env": one.env,
        "split": one.split,
        "words": details.words or one.task,
        "rewards": details.rewards,
        "advantage": details.advantage,
        "group_address": run_address(name, f"group/{quote(one.group, safe='')}"),
        "reward": "" if one.reward is None else f"{one.reward:.3g}",
        "stop": one.stop_reason,
        "outcome": one.outcome,
        "version": one.versions,
        "turns": "" if one.turns is None else str(one.turns),
        "tokens": "" if one.tokens is None else f"{one.tokens:,}",
        "seconds": "" if one.seconds is None else f"{one.seconds:.2f}",
        "newest": begun(one),
        "fault": one.fault[:100],
    }


def trajectory_address(name: str, id: str, query: list[tuple[str, str]]) -> str:
    """The address of a trajectory, with the filter that led to it."""
    return run_address(name, f"trajectory/{quote(id, safe='')}", query)


def begun(one: Hit) -> str:
    """When it began, in this machine's time."""
    try:
        return "" if one.start is None else f"{datetime.fromtimestamp(one.start):%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # no time that a calendar has
        return ""


def histogram(bars: tuple[RewardBar, ...], asked: TrajectoryFilter) -> charts.Options:
    """The rewards; bars outside of what is asked for are pale."""
    low = float("-inf") if asked.reward_min is None else asked.reward_min
    high = float("inf") if asked.reward_max is None else asked.reward_max
    return charts.histogram(
        "rewards (choose a bar to see its trajectories)",
        [(_range(bar), bar.trajectories, low <= bar.high and bar.low <= high) for bar in bars],
    )


def options_of(name: str, found: Choices, value: str) -> dict[str, str]:
    """Options of a control: the values that occur, and the chosen one even where it does not."""
    offered = {
        "env": found.envs,
        "split": found.splits,
        "stop": found.stops,
        "outcome": found.outcomes,
        "fault": (WITH, WITHOUT),
    }[name]
    if name == "outcome":
        offered = tuple(one or NO_OUTCOME for one in offered)
    return {"": "any", **{one: one for one in (*offered, value) if one}}


def _range(bar: RewardBar) -> str:
    low, high = f"{bar.low:.3g}", f"{bar.high:.3g}"
    return low if low == high else f"{low} to {high}"


def _said(value: float | str | None) -> str:
    """A number or a text in a field."""
    return value if isinstance(value, str) else "" if value is None else f"{value:.12g}"


def _nothing(answer: Answer, asked: TrajectoryFilter) -> None:
    if not answer.choices.envs:
        notice("No trajectories yet.", "They come when the first group of episodes is finished.")
    elif asked.page > 1 and answer.tally.hits:
        notice("There are fewer pages.", "Clear the filter, or go back to the first page.")
    else:
        notice("No trajectory is like that.", "Ask for less: `clear` takes all filters away.")
