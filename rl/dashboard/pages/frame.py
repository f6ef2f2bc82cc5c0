"""The frame of every page: header, navigation, colours, notices, and the timer that keeps a page live.

Text of a run folder reaches a page through labels, tables and charts only, which show text as text; `ui.html`
and `ui.markdown` are not used anywhere.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import quote, urlencode

from nicegui import run, ui

from rl.dashboard.alert import Alert
from rl.dashboard.charts import Options
from rl.dashboard.page import Site
from rl.dashboard.run_data import RunData

# Seconds between two looks at the run folder.
LIVE_SECONDS = 2.0
_ICONS = {"error": "error", "warning": "warning", "note": "info"}
_TONES = {"error": "negative", "warning": "warning", "note": "primary"}
_STYLE = """
.nicegui-content { padding: 0; }
.page { width: 100%; max-width: 1800px; margin: 0 auto; padding: 16px clamp(8px, 2vw, 24px) 40px; }
.q-header { flex-wrap: wrap; row-gap: 4px; }
.body--dark .nicegui-link, .body--dark td a { color: #7cc4ff; }
.body--light .nicegui-link, .body--light td a { color: #0067a0; }
.body--dark .q-btn.text-primary { --q-primary: #7cc4ff; }
.q-field__focusable-action { opacity: 1; }
.panel { border: 1px solid #80879240; border-radius: 8px; padding: 12px; }
.quiet { color: #636a75; font-size: 12px; }
.body--dark .quiet { color: #9aa1ac; }
.section { font-weight: 600; margin-top: 4px; }
.leads { white-space: nowrap; }
.number { font-size: 22px; font-weight: 600; line-height: 1.2; }
.halves { display: grid; gap: 12px; width: 100%; }
.halves { grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); }
.panel td { white-space: normal; overflow-wrap: anywhere; }
.charts, .tiles { display: grid; gap: 12px; width: 100%; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); }
.tiles { grid-template-columns: repeat(auto-fill, minmax(min(150px, 100%), 1fr)); }
.log { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 480px; overflow: auto;
  font: 12px/1.45 ui-monospace, monospace; display: flex; flex-direction: column-reverse; }
.settings td { font: 12px/1.45 ui-monospace, monospace; }
.differs { background: #E69F0030; }
.q-table__container { box-shadow: none; background: transparent; }
"""


def run_address(name: str, page: str = "", query: Sequence[tuple[str, str]] = ()) -> str:
    """The address of a run's page, such as /run/quickstart/metrics?match=loss."""
    path = f"/run/{quote(name, safe='')}" + (f"/{page}" if page else "")
    return path + (f"?{urlencode(query)}" if query else "")


@contextmanager
def frame(site: Site, name: str = "", page: str = "") -> Iterator[None]:
    """The page around its content. name: of the run that it is about; page: its own name."""
    titles = [one.title for one in site.pages if one.title and one.below == page and name]
    ui.page_title(" · ".join([*titles, *([name[:60]] if name else []), "Dorado"]))
    ui.add_css(_STYLE)
    ui.colors(
        primary="#0072B2",
        negative="#D55E00",
        warning="#B57A00",
        positive="#009E73",
        dark_page="#000",
    )
    dark = ui.dark_mode(None)
    with ui.header().classes("items-center q-py-sm").style("background: #12263a"):
        ui.link("Dorado", "/").classes("text-white text-bold no-underline text-lg")
        if name:
            ui.label(name).classes("text-white ellipsis").style("max-width: 40vw")
            for one in site.pages:
                if one.title:
                    link = ui.link(one.title, run_address(name, one.below)).classes("text-white")
                    link.classes("text-bold" if one.below == page else "no-underline")
        ui.space()
        ui.label(str(site.runs.path)).classes("text-white ellipsis gt-sm").style("opacity: .6")
        button = ui.button(icon="contrast", on_click=lambda: dark.set_value(not dark.value))
        button.props("flat round dense color=white aria-label='dark or light'")
        if site.runs.note:
            ui.label(site.runs.note).classes("text-white w-full text-caption")
    with ui.column().classes("page gap-4"):
        yield


@contextmanager
def panel(title: str) -> Iterator[None]:
    """A box with a title of ours around what is in it."""
    with ui.element("div").classes("panel w-full"):
        ui.label(title).classes("quiet")
        yield


def tile(name: str, value: str, remark: str) -> None:
    """A number with its name and a remark."""
    with ui.column().classes("panel gap-0"):
        ui.label(name).classes("quiet")
        ui.label(value).classes("number")
        ui.label(remark).classes("quiet")


def notice(text: str, advice: str = "", icon: str = "info") -> None:
    """An empty or an error state: what is the case, and what to do."""
    with ui.row().classes("panel w-full items-center no-wrap"):
        ui.icon(icon, size="md").classes("text-grey-7")
        with ui.column().classes("gap-0"):
            ui.label(text)
            if advice:
                ui.label(advice).classes("quiet")


def no_such_run(site: Site, name: str) -> None:
    """The page of a run that is not there."""
    with frame(site):
        notice(
            f"There is no run named {name!r} in {site.runs.path}.",
            "An earlier run gets its date added to its name when a new one takes the name.",
            "search_off",
        )
        ui.link("All runs", "/")


def no_such_page(site: Site, address: str) -> None:
    """The page of an address that leads nowhere."""
    with frame(site):
        notice(f"There is no page {address[:200]!r}.", "The address may be mistyped.", "search_off")
        ui.link("All runs", "/")


def unreadable_index(error: Exception) -> None:
    """Notice in place of what would come from the index of the trajectories."""
    notice(f"trajectories.sqlite cannot be read now: {error}", "Load the page again.", "error")


def alert_rows(found: Sequence[Alert], name: str = "") -> None:
    """Draw alerts, one under the other, each with a link to where one looks next in the run of that name."""
    for alert in found:
        with ui.row().classes("items-center no-wrap gap-2"):
            ui.icon(_ICONS[alert.level], color=_TONES[alert.level])
            ui.label(alert.text)
            if name and alert.page:
                step = "" if alert.step is None else f"step {alert.step}: "
                ui.link(step + alert.page, run_address(name, alert.page, alert.query)).classes(
                    "leads"
                )


def table(columns: Sequence[tuple[str, str]], key: str, text: Sequence[str] = ()) -> ui.table:
    """An empty table. columns: (field, title); those not in `text` are numbers, at the right."""
    made = [
        {"name": f, "label": title, "field": f, "align": "left" if f in text else "right"}
        for f, title in columns
    ]
    shown = ui.table(columns=made, rows=[], row_key=key, pagination=0)
    return shown.props("flat dense hide-pagination").classes("w-full")


def fill(shown: ui.table, rows: Sequence[Mapping[str, object]]) -> None:
    """Show these rows; nothing is sent where they are the same."""
    if shown.rows != (now := [dict(row) for row in rows]):
        shown.rows = now


def redraw(chart: ui.echart, options: Options) -> None:
    """Show these options; nothing is sent where they are the same."""
    if chart.options != options:
        chart.options.clear()
        chart.options.update(options)
        chart.update()


async def read(*data: RunData) -> None:
    """Read what is new in these runs, beside the event loop."""
    for one in data:
        await run.io_bound(one.refresh)


def live(act: Callable[[], Awaitable[None] | None], *, times: int = 1) -> None:
    """Do this again and again while the page is open, so many times in `LIVE_SECONDS`."""
    client = ui.context.client

    async def look() -> None:
        try:
            if (acting := act()) is not None:
                await acting
        except RuntimeError:
            if not client.is_deleted:  # else the server ends while this reads the run folder
                raise

    ui.timer(LIVE_SECONDS / times, look, immediate=False)
