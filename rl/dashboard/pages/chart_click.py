"""A click anywhere in a chart, as the place on its horizontal axis."""

from collections.abc import Callable

from nicegui import events, ui

from rl.dashboard.series import number

# JavaScript of ours: the place of a click within the axes; a click on the legend or the title is none.
_PLACE = """(event) => {
  const chart = getElement(%d).chart;
  if (!chart || !chart.containPixel("grid", [event.offsetX, event.offsetY])) return;
  emit(chart.convertFromPixel({xAxisIndex: 0}, event.offsetX));
}"""


def on_place(chart: ui.echart, act: Callable[[float], None]) -> None:
    """Do this with the x of each click in a chart that has an axis of numbers."""

    def clicked(event: events.GenericEventArguments) -> None:
        place = number(event.args)
        if place is not None:
            act(place)

    chart.on("click", clicked, js_handler=_PLACE % chart.id)
    chart.style("cursor: pointer")
