"""`/run/NAME/health?log=FILE`: actors and their heartbeats, what is waited for, the logs' ends."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nicegui import run, ui

from rl.dashboard.alert import Alert
from rl.dashboard.health import (
    actor_rows,
    health_figures,
    phase_rows,
    troubles,
    waiting_rows,
)
from rl.dashboard.log_tail import TAIL_BYTES, log_names, log_tail
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import (
    alert_rows,
    fill,
    frame,
    live,
    no_such_run,
    notice,
    panel,
    read,
    run_address,
    table,
    tile,
)
from rl.dashboard.run_data import RunData

_ACTORS = (
    ("name", "actor"),
    ("state", "state"),
    ("serves", "serves"),
    ("seen", "last seen, ago"),
    ("pid", "process"),
    ("node", "node"),
)
_PHASES = (("env", "environment"), ("all", "in flight"), ("phases", "in which phase"))
_WAITING = (
    ("id", "trajectory"),
    ("env", "environment"),
    ("version", "version"),
    ("phase", "phase"),
    ("at", "at"),
    ("seconds", "seconds"),
    ("p99", "usual p99"),
    ("times", "times p99"),
    ("left", "left"),
    ("then", "then"),
)


@dataclass
class Choice:
    """The run, and the log file that is shown."""

    data: RunData
    log: str

    @property
    def address(self) -> str:
        """The address that shows the same."""
        query = [("log", self.log)] if self.log else []
        return run_address(self.data.name, "health", query)


def health_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str, log: str = "") -> None:
        found = site.runs.find(name)
        if found is None:
            return no_such_run(site, name)
        await read(found)
        with frame(site, found.name, "health"):
            await _content(Choice(found, log))


async def _content(choice: Choice) -> None:
    data, said = choice.data, list[object]()

    @ui.refreshable
    def head() -> None:
        with ui.element("div").classes("tiles"):
            for figure in health_figures(data):
                tile(figure.name, figure.value, figure.remark)
        alert_rows([Alert("warning", sentence) for sentence in troubles(data)])
        if data.status is None:
            notice(
                "No status yet.",
                "A run writes it every 5 seconds, from the moment in which its engines have started.",
                "hourglass_empty",
            )

    head()
    with ui.element("div").classes("halves"):
        with panel("actors"):
            actors = table(_ACTORS, "name", ("name", "state", "serves", "node"))
        with panel("trajectories in flight"):
            phases = table(_PHASES, "env", ("env", "phases"))
    with panel("what trajectories wait for, the most suspicious first"):
        waits = table(_WAITING, "id", ("id", "env", "phase", "at", "then"))
        waits.props("virtual-scroll").style("max-height: 420px")
    show_log = _log(choice)

    def show() -> None:
        if said != (now := [*health_figures(data), *troubles(data)]):
            said[:] = now
            head.refresh()
        fill(actors, actor_rows(data))
        fill(phases, phase_rows(data))
        fill(waits, waiting_rows(data))

    async def refresh() -> None:
        await read(data)
        show()
        await show_log()

    show()
    await show_log()
    live(refresh)


def _log(choice: Choice) -> Callable[[], Awaitable[None]]:
    """The end of a log file, and the choice of it; returns what reads it anew."""
    with panel(f"logs: the last {TAIL_BYTES // 1024} KiB of"):
        chosen = ui.select({}, value=None).props("outlined dense options-dense")
        chosen.classes("q-mb-sm").style("min-width: 260px")
        text = ui.label().classes("log")

    async def show_log() -> None:
        names = await run.io_bound(log_names, choice.data.folder) or []
        if chosen.options != (options := {name: name for name in names}):
            chosen.set_options(options, value=choice.log if choice.log in options else None)
        tail = await run.io_bound(log_tail, choice.data.folder, choice.log) if choice.log else ""
        if tail is None:
            tail = f"There is no file {choice.log!r} in logs/."
        empty = (
            "The file is empty." if choice.log else "Choose a file; there is one for each actor."
        )
        text.set_text(tail or empty)

    async def choose(name: str | None) -> None:
        if (name or "") != choice.log and name is not None:
            choice.log = name
            ui.navigate.history.replace(choice.address)
            await show_log()

    chosen.on_value_change(lambda event: choose(event.value))
    return show_log
