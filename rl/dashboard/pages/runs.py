"""`/`: the runs of the folder, the one begun last first; to be sorted, filtered, chosen to be compared."""

from urllib.parse import urlencode

from nicegui import ui

from rl.dashboard.page import Site
from rl.dashboard.pages.frame import fill, frame, live, notice, read, run_address
from rl.dashboard.runs_table import SPARK_HEIGHT, SPARK_WIDTH, run_row

# JavaScript of ours: numbers for a reader.
_SHARE = "value => value === null ? '-' : value.toFixed(2)"
_TIME = """value => value === null ? '-' : value < 120 ? value.toFixed(0) + ' s'
  : value < 7200 ? (value / 60).toFixed(0) + ' min' : (value / 3600).toFixed(1) + ' h'"""
_WHOLE = "value => value === null ? '' : String(value)"
_BY_STEP = "(a, b, rowA, rowB) => rowA.at - rowB.at"
_BY_BEGIN = "(a, b, rowA, rowB) => (rowA.begun || 0) - (rowB.begun || 0)"
# Field: title, alignment, and what else its column has.
_COLUMNS: dict[str, tuple[str, str, dict[str, str]]] = {
    "name": ("run", "left", {}),
    "state": ("state", "left", {}),
    "spark": ("how it went", "left", {}),
    "held_out": ("held-out", "right", {":format": _SHARE}),
    "best": ("best", "right", {":format": _SHARE}),
    "reward": ("reward", "right", {":format": _SHARE}),
    "step": ("step", "right", {":sort": _BY_STEP}),
    "seconds": ("duration", "right", {":format": _TIME}),
    "model": ("model", "left", {"style": "white-space: normal"}),
    "envs": ("environments", "left", {"style": "white-space: normal; min-width: 130px"}),
    "seed": ("seed", "right", {":format": _WHOLE}),
    "mode": ("mode", "left", {}),
    "alerts": ("alerts", "right", {":format": "value => value || ''"}),
    "written": ("last written", "left", {":sort": _BY_BEGIN}),
}
# Cells are Vue's: their text is escaped, the address was made by `run_address`, the points are numbers.
_LINK = '<q-td :props="props"><a :href="props.row.address">{{ props.value }}</a></q-td>'
_STATE = (
    '<q-td :props="props"><span class="dot" :class="\'dot-\' + props.row.state"></span>'
    "{{ props.value }}</q-td>"
)
_SPARK = (
    f'<q-td :props="props"><svg width="{SPARK_WIDTH}" height="{SPARK_HEIGHT}" aria-hidden="true">'
    '<polyline :points="props.row.spark" fill="none" stroke="#0072B2" stroke-width="1.6" /></svg></q-td>'
)
_STYLE = """
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 6px;
  background: #808792; }
.dot-running { background: #0072B2; } .dot-starting { background: #56B4E9; }
.dot-finished, .dot-ended { background: #009E73; } .dot-silent { background: #E69F00; }
.dot-interrupted { background: #E69F00; } .dot-failed { background: #D55E00; }
"""


def runs_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page() -> None:
        with frame(site):
            ui.add_css(_STYLE)
            empty = ui.column().classes("w-full")
            with empty:
                notice(
                    f"No runs in {site.runs.path} yet.",
                    "Start one with `dorado train configs/quickstart.toml`; it shows here by itself.",
                )
            with ui.row().classes("w-full items-center gap-2") as tools:
                words = ui.input("filter by any column").props(
                    "outlined dense clearable debounce=200"
                )
                words.classes("grow").style("min-width: min(240px, 100%)")
                compare = ui.button(
                    "compare", icon="compare_arrows", on_click=lambda: _compare(shown)
                )
                compare.props("outline no-caps")
                ui.label("choose two runs or more").classes("quiet")
            shown = _table()
            words.bind_value_to(shown, "filter", forward=lambda text: text or "")

            async def refresh() -> None:
                found = [
                    one for name in site.runs.names() if (one := site.runs.find(name)) is not None
                ]
                await read(*found)
                fill(shown, [run_row(one, run_address(one.name)) for one in found])
                for one in (shown, tools):
                    one.set_visibility(bool(found))
                empty.set_visibility(not found)

            await refresh()
            live(refresh)


def _table() -> ui.table:
    columns = [
        {"name": field, "label": title, "field": field, "align": align, "sortable": True, **more}
        for field, (title, align, more) in _COLUMNS.items()
    ]
    shown = ui.table(columns=columns, rows=[], row_key="name", selection="multiple", pagination=0)
    shown.props("flat dense hide-pagination binary-state-sort").classes("w-full")
    for field, cell in (("name", _LINK), ("state", _STATE), ("spark", _SPARK)):
        shown.add_slot(f"body-cell-{field}", cell)
    return shown


def _compare(shown: ui.table) -> None:
    """Go to the page that compares the chosen runs."""
    chosen = [str(row["name"]) for row in shown.selected]
    if len(chosen) < 2:
        ui.notify("Choose two runs or more, by the boxes at the left.")
        return
    ui.navigate.to(compare_address(chosen))


def compare_address(names: list[str]) -> str:
    """The address of the page that compares these runs."""
    return f"/compare?{urlencode([('run', name) for name in names])}"
