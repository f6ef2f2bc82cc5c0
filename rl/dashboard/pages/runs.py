"""`/`: the runs of the folder, the one begun last first."""

from nicegui import ui

from rl.dashboard.alerts import alerts
from rl.dashboard.overview import figures, said, written
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import fill, frame, live, notice, read, run_address, table
from rl.dashboard.run_data import RunData
from rl.dashboard.series import recent

_COLUMNS = (
    ("name", "run"),
    ("state", "state"),
    ("step", "step"),
    ("reward", "reward"),
    ("held_out", "held-out"),
    ("mode", "mode"),
    ("alerts", "alerts"),
    ("written", "last written"),
)
# The cell is Vue's: its text is escaped, and the address was made by `run_address`.
_LINK = '<q-td :props="props"><a :href="props.row.address">{{ props.value }}</a></q-td>'


def runs_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page() -> None:
        with frame(site):
            empty = ui.column().classes("w-full")
            with empty:
                notice(
                    f"No runs in {site.runs.path} yet.",
                    "Start one with `dorado train configs/quickstart.toml`; it shows here by itself.",
                )
            shown = table(_COLUMNS, "name", ("name", "state", "mode", "written"))
            shown.add_slot("body-cell-name", _LINK)

            async def refresh() -> None:
                found = [
                    one for name in site.runs.names() if (one := site.runs.find(name)) is not None
                ]
                await read(*found)
                fill(shown, [row(one) for one in found])
                shown.set_visibility(bool(found))
                empty.set_visibility(not found)

            await refresh()
            live(refresh)


def row(run: RunData) -> dict[str, str]:
    """One run in the table."""
    held_out = next(figure for figure in figures(run) if figure.name == "held-out")
    return {
        "name": run.name,
        "address": run_address(run.name),
        "state": run.state(),
        "step": f"{run.step} / {run.steps}",
        "reward": said(recent(run.series, "rollout/all/reward")),
        "held_out": held_out.value,
        "mode": str(run.config.get("mode", ""))[:40],
        "alerts": str(len(alerts(run)) or ""),
        "written": written(run).removeprefix("last written "),
    }
