"""`/run/NAME/trajectory/ID?turn=&view=`: one trajectory; the filter that led to it stays in the address."""

import asyncio
import shlex
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from fastapi import Request
from nicegui import events, ui

from rl.dashboard.charts import COLOURS
from rl.dashboard.drill_down import in_time
from rl.dashboard.learned_record import Learned, read_learned
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import (
    frame,
    live,
    no_such_run,
    notice,
    run_address,
    unreadable_index,
)
from rl.dashboard.pages.message_view import (
    STYLE,
    folded,
    message,
    rewards_text,
    said,
    segment_head,
    shortened,
    turn_messages,
)
from rl.dashboard.pages.other_tries import other_tries
from rl.dashboard.pages.trajectories import begun, trajectory_address
from rl.dashboard.run_data import RunData
from rl.dashboard.token_text import token_texts
from rl.dashboard.token_view import (
    MAX_TOKENS,
    QUANTITIES,
    legend,
    policy_tokens,
    scale,
    token_rows,
)
from rl.dashboard.trajectory_filter import TrajectoryFilter, read_filter
from rl.dashboard.trajectory_index import Hit, beside, find
from rl.dashboard.trajectory_record import TrajectoryView, TurnView, Unreadable, read_record

_MESSAGES, _IDS = "messages", "ids"
_VIEWS = {_MESSAGES: "messages", **QUANTITIES, _IDS: "raw ids"}
# Turns drawn at once, from the one that is chosen.
_MAX_TURNS = 30
_TOKEN_STYLE = """
.views { flex-wrap: wrap; }
.facts { grid-template-columns: repeat(auto-fill, minmax(138px, 1fr)); }
.tokens .q-table__grid-content { display: block; line-height: 1.7; }
.token { white-space: pre-wrap; overflow-wrap: anywhere; font: 12px ui-monospace, monospace; padding: 2px 0; }
.token-wrote { border-radius: 2px; outline: 1px solid #80879225; }
.token-told { opacity: .6; }
"""
# Vue's: text and title are escaped, and the style was made by `token_rows`.
_TOKEN = (
    "<span class='token' :class=\"'token-' + props.row.kind\" :style='props.row.style' "
    ":title='props.row.hover'>{{ props.row.text }}</span>"
)


@dataclass
class Shown:
    """State of the page: a trajectory, and how it is shown."""

    data: RunData
    hit: Hit
    view: TrajectoryView
    learned: Learned | str
    asked: TrajectoryFilter
    turn: int
    kind: str

    @property
    def address(self) -> str:
        """The address that shows the same."""
        query = [*([("turn", str(self.turn))] if self.turn > 1 else []), *self.kept]
        return trajectory_address(self.data.name, self.hit.id, query)

    @property
    def kept(self) -> list[tuple[str, str]]:
        """Parameters that stay in the address from one trajectory to the next."""
        kind = [("view", self.kind)] if self.kind != _MESSAGES else []
        return [*kind, *self.asked.query]


def trajectory_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str, id: str, request: Request) -> None:
        data = site.runs.find(name)
        if data is None:
            return no_such_run(site, name)
        with frame(site, name, "trajectories"):
            ui.add_css(STYLE + _TOKEN_STYLE)
            try:
                hit = await asyncio.to_thread(find, data.folder, id)
            except (sqlite3.Error, OSError) as error:
                return unreadable_index(error)
            if hit is None:
                return _wait_for(data, id)
            await _open(data, hit, request.query_params)


def _wait_for(data: RunData, id: str) -> None:
    notice(
        f"There is no trajectory {id[:200]!r} in the index.",
        "One of a run in progress is there when its group is finished; then it shows here by itself.",
        "search_off",
    )

    async def look() -> None:
        try:
            if await asyncio.to_thread(find, data.folder, id) is not None:
                ui.navigate.reload()
        except (sqlite3.Error, OSError):
            return  # asked again at the next look

    live(look)


async def _open(data: RunData, hit: Hit, query: Mapping[str, str]) -> None:
    asked, kind = read_filter(query), query.get("view", _MESSAGES)
    kind = kind if kind in _VIEWS else _MESSAGES
    try:
        view = await asyncio.to_thread(read_record, data.folder, hit)
    except Unreadable as error:
        _head(data, hit, lambda: asked.query)
        notice(str(error), "What is above is from the index.", "error")
        return
    learned = await asyncio.to_thread(read_learned, data.folder, hit, view.num_policy_tokens)
    number = query.get("turn", "")
    turn = int(number) if number.isdecimal() and len(number) < 9 else 1
    shown = Shown(data, hit, view, learned, asked, max(1, min(turn, len(view.turns))), kind)
    _head(data, hit, lambda: shown.kept)
    _facts(view)
    await _turns(shown)
    other_tries(data, hit)


def _head(data: RunData, hit: Hit, kept: Callable[[], list[tuple[str, str]]]) -> None:
    """Draw the head: the index's row, links to the next one, texts to copy. kept: parameters that stay."""
    with ui.row().classes("w-full items-center gap-2"):
        ui.label(hit.id[:200]).classes("number")
        ui.space()
        _steps(data, hit, kept)
    command = replay_command(data.folder, hit)
    with ui.row().classes("w-full items-center gap-2 no-wrap"):
        ui.label(command).classes("quiet code ellipsis")
        copy = ui.button("copy command", icon="content_copy", on_click=lambda: _copy(command))
        copy.props("flat dense size=sm no-wrap")
        link = ui.button("copy link", icon="link").props("flat dense size=sm no-wrap")
        link.on("click", js_handler="() => navigator.clipboard.writeText(window.location.href)")
    figures = (
        ("reward", "none" if hit.reward is None else f"{hit.reward:.4g}"),
        ("stopped by", hit.stop_reason),
        ("outcome", hit.outcome or "none"),
        ("environment", f"{hit.env}, {hit.split}"),
        ("task", hit.task),
        ("policy version", hit.versions or "none"),
        ("turns, tokens", f"{hit.turns}, {hit.tokens}"),
        ("begun", f"{begun(hit)}, {hit.seconds or 0:.2f} s"),
    )
    with ui.element("div").classes("tiles facts"):
        for name, value in figures:
            with ui.column().classes("panel gap-0"):
                ui.label(name).classes("quiet")
                ui.label(value[:200]).style("overflow-wrap: anywhere")


def _steps(data: RunData, hit: Hit, kept: Callable[[], list[tuple[str, str]]]) -> None:
    """Next and previous in the filter, by button and by key."""

    async def go(forward: bool) -> None:
        query = kept()
        asked = read_filter(dict(query))
        try:
            other = await asyncio.to_thread(_beside, data, asked, hit, forward)
        except (sqlite3.Error, OSError) as error:
            ui.notify(f"trajectories.sqlite cannot be read now: {error}")
            return
        if other is None:
            ui.notify(f"This is the {'last' if forward else 'first'} one of the filter.")
        else:
            ui.navigate.to(trajectory_address(data.name, other, query))

    async def pressed(event: events.KeyEventArguments) -> None:
        held = event.modifiers
        if not event.action.keydown or held.ctrl or held.alt or held.meta:
            return
        if event.key.name in ("j", "ArrowRight"):
            await go(True)
        elif event.key.name in ("k", "ArrowLeft"):
            await go(False)

    ui.keyboard(on_key=pressed, repeating=False)
    ui.link("group", run_address(data.name, f"group/{quote(hit.group, safe='')}"))
    ui.link(
        "all of the filter", run_address(data.name, "trajectories", read_filter(dict(kept())).query)
    )
    for label, icon, forward in (
        ("previous (k)", "chevron_left", False),
        ("next (j)", "chevron_right", True),
    ):
        button = ui.button(label, icon=icon, on_click=partial(go, forward))
        button.props("flat dense no-caps")


def _beside(data: RunData, asked: TrajectoryFilter, hit: Hit, forward: bool) -> str | None:
    return beside(data.folder, in_time(data, asked), hit, data.texts.path, forward=forward)


def _copy(text: str) -> None:
    ui.clipboard.write(text)
    ui.notify("Copied.")


def replay_command(folder: Path, hit: Hit) -> str:
    """The command that plays it again; a name with a slash is found in its file, any other by the index."""
    named = f"{folder / hit.file}:{hit.id}" if "/" in hit.id else f"{folder}/{hit.id}"
    return f"dorado env replay {shlex.quote(named)}"


def _facts(view: TrajectoryView) -> None:
    """Draw facts of the record: rewards, task, phases, notes, and what is odd about it."""
    with ui.column().classes("panel w-full gap-1"):
        noise = f", noise {view.noise}" if view.noise else ""
        engines = sorted({turn.engine for turn in view.turns})
        ui.label(f"rewards: {rewards_text(view)}")
        ui.label(f"task{noise}: {shortened(view.task, 2000)}").classes("text code")
        for name, value in view.notes[:40]:
            ui.label(f"{name}: {shortened(value, 500)}").classes("text")
        if view.num_segments > 1:
            ui.label(f"segments: {view.num_segments}, each a sample of its own").classes("quiet")
        ui.label(f"engines: {', '.join(engines) or 'none'}"[:500]).classes("quiet")
        _phase_bar(view)
    for problem in view.problems:
        notice(f"{problem}.", icon="warning")


def _phase_bar(view: TrajectoryView) -> None:
    """The seconds per phase, side by side."""
    seconds: dict[str, float] = {}
    for phase in view.phases:
        seconds[phase.name] = seconds.get(phase.name, 0.0) + phase.seconds
    parts = list(seconds.items())[:20]
    with ui.row().classes("w-full no-wrap gap-0"):
        for n, (_, length) in enumerate(parts):
            bar = ui.element("div").style(f"flex: {length:.6f} 0 1px; height: 8px")
            bar.style(f"background: {COLOURS[n % len(COLOURS)]}")
    with ui.row().classes("gap-3"):
        for n, (name, length) in enumerate(parts):
            with ui.row().classes("items-center gap-1"):
                dot = ui.element("div").style("width: 8px; height: 8px")
                dot.style(f"background: {COLOURS[n % len(COLOURS)]}")
                ui.label(f"{name[:40]} {length:.3f} s").classes("quiet")


async def _turns(shown: Shown) -> None:
    """The choice of view and turn, and the turns by it."""

    @ui.refreshable
    async def content() -> None:
        if shown.kind == _MESSAGES:
            _messages(shown)
        elif shown.kind == _IDS:
            _raw_ids(shown)
        else:
            await _tokens(shown)

    def choose() -> None:
        shown.kind, shown.turn = views.value or _MESSAGES, turns.value or 1
        ui.navigate.history.replace(shown.address)
        content.refresh()

    with ui.row().classes("w-full items-center"):
        views = (
            ui.toggle(_VIEWS, value=shown.kind, on_change=choose)
            .props("no-caps dense")
            .classes("views")
        )
        numbers = {turn.number: _from(turn) for turn in shown.view.turns}
        turns = ui.select(numbers or {1: "no turns"}, value=shown.turn, on_change=choose)
        turns.props("outlined dense options-dense")
    await content()


def _from(turn: TurnView) -> str:
    return f"from turn {turn.number}" + (f", segment {turn.segment}" if turn.begins else "")


def _messages(shown: Shown) -> None:
    view = shown.view
    with ui.column().classes("panel w-full gap-3"):
        if shown.turn == 1:
            for one in view.opening:
                said(one)
        turns = view.turns[shown.turn - 1 :]
        for turn in turns[:_MAX_TURNS]:
            segment_head(view, turn)
            turn_messages(turn)
        if len(turns) > _MAX_TURNS:
            ui.label(f"… and {len(turns) - _MAX_TURNS} turns more").classes("quiet")
        if view.log:
            folded(f"the agent's own log, {len(view.log):,} characters", view.log)
        if view.fault:
            message("fault", view.fault, "fault")
        if view.trace:
            with ui.column().classes("message fault gap-0"):
                ui.label("traceback").classes("quiet")
                ui.label(shortened(view.trace)).classes("text code")


def _raw_ids(shown: Shown) -> None:
    for turn in shown.view.turns[shown.turn - 1 :][:_MAX_TURNS]:
        with ui.column().classes("panel w-full gap-1"):
            for name, ids in (
                ("prompt_ids", turn.prompt_ids),
                ("completion_ids", turn.completion_ids),
            ):
                ui.label(f"turn {turn.number}, {name}, {len(ids):,}").classes("quiet")
                ui.label(shortened(str(list(ids)))).classes("text code")


async def _tokens(shown: Shown) -> None:
    """The tokens of as many turns as a browser can draw."""
    learned = shown.learned if isinstance(shown.learned, Learned) else None
    tokens = policy_tokens(shown.view, learned)
    full = scale(tokens, shown.kind)
    ui.label(legend(shown.kind, full)).classes("quiet")
    if isinstance(shown.learned, str):
        ui.label(shown.learned)
    else:
        ui.label(learned_text(shown.learned)).classes("quiet")
    drawn = _that_fit(shown.view.turns[shown.turn - 1 :])
    ids = [id for turn in drawn for id in (*turn.prompt_ids, *turn.completion_ids)]
    texts = await asyncio.to_thread(token_texts, shown.data.folder, ids)
    if texts is None:
        ui.label("The run leads to no tokenizer, so these are ids.")
    by_id = dict(zip(ids, texts or map(str, ids), strict=True))
    for turn in drawn:
        with ui.column().classes("panel w-full gap-1"):
            count = len(turn.prompt_ids) + len(turn.completion_ids)
            cut = f", the first {MAX_TOKENS:,} of them" if count > MAX_TOKENS else ""
            ui.label(f"turn {turn.number}, {count:,} tokens{cut}").classes("quiet")
            rows = token_rows(turn, tokens[turn.number - 1], shown.kind, full, by_id)
            columns = [{"name": "text", "label": "", "field": "text"}]
            strip = ui.table(columns=columns, rows=rows, row_key="n", pagination=0)
            strip.props("grid hide-header hide-pagination flat").classes("tokens w-full")
            strip.add_slot("item", _TOKEN)
    if left := len(shown.view.turns) - (shown.turn - 1) - len(drawn):
        ui.label(f"… and {left} turns more: choose the turn to begin with").classes("quiet")


def _that_fit(turns: Sequence[TurnView]) -> list[TurnView]:
    """The first of these turns, at least one, as far as their tokens can be drawn."""
    drawn, tokens = [], 0
    for turn in turns:
        tokens += len(turn.prompt_ids) + len(turn.completion_ids)
        if drawn and tokens > MAX_TOKENS:
            break
        drawn.append(turn)
    return drawn


def learned_text(learned: Learned) -> str:
    """When it was trained on, and what of it is known."""
    again = f", for the {learned.times}th time" if learned.times > 1 else ""
    missing = [
        name
        for name, values in (
            ("advantages", learned.advantages),
            ("learner's log-probs", learned.learner_logprobs),
            ("entropies", learned.entropies),
        )
        if not values
    ]
    lacks = f"; the record has no {', '.join(missing)} that fit its tokens" if missing else ""
    return f"Trained on in step {learned.step}{again}{lacks}."
