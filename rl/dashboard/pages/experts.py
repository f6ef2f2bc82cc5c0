"""`/run/NAME/experts?layer=`: the load of experts over the steps, and what the routers do."""

from nicegui import ui

from rl.dashboard import charts
from rl.dashboard.expert_loads import heat_map, router_charts
from rl.dashboard.page import Site
from rl.dashboard.pages.frame import frame, live, no_such_run, notice, read, redraw, run_address
from rl.dashboard.run_data import RunData

# Heat maps on one page; a model with more layers has several pages.
LAYERS = 8


def experts_page(site: Site, route: str) -> None:
    """Register the page."""

    @ui.page(route, response_timeout=60)
    async def page(name: str, layer: str = "") -> None:
        run = site.runs.find(name)
        if run is None:
            return no_such_run(site, name)
        await read(run)
        with frame(site, run.name, "experts"):
            _content(run, int(layer) if layer.isdecimal() and len(layer) < 9 else 0)


def _content(run: RunData, first: int) -> None:
    empty, others = ui.column().classes("w-full"), ui.row().classes("items-center")
    with empty:
        notice(
            "No loads of experts yet.",
            "They come with the learner's first step, of a policy that has experts.",
            "hourglass_empty",
        )
    drawn: dict[str, ui.echart] = {}
    pictures = ui.element("div").classes("charts")
    linked: list[int] = []

    def found() -> dict[str, charts.Options]:
        maps = {
            f"layer {layer}": chart
            for layer in range(first, first + LAYERS)
            if (chart := heat_map(run.experts, layer)) is not None
        }
        return router_charts(run.series) | maps

    def show() -> None:
        options = found()
        empty.set_visibility(not options)
        layers = len(run.experts[-1].loads) if run.experts else 0
        if linked != [layers]:
            linked[:] = [layers]
            others.clear()
            with others:
                for start in range(0, layers if layers > LAYERS else 0, LAYERS):
                    last = min(start + LAYERS, layers) - 1
                    address = run_address(run.name, "experts", [("layer", str(start))])
                    ui.link(f"layers {start} to {last}", address)
        if list(options) != list(drawn):
            drawn.clear()
            pictures.clear()
            with pictures:
                for name, one in options.items():
                    with ui.element("div").classes("panel"):
                        drawn[name] = ui.echart(one).style("height: 300px")
        for name, one in options.items():
            redraw(drawn[name], one)

    async def refresh() -> None:
        await read(run)
        show()

    show()
    live(refresh)
