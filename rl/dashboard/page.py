"""A page of the dashboard as the server, the navigation and the tests know it.

A page is one file of `rl/dashboard/pages/` and one entry of `PAGES` in `rl/dashboard/server.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rl.dashboard.run_data import RunsFolder

RUN = "/run/{name}"


@dataclass(frozen=True)
class Page:
    """One page, such as Page("/run/{name}/metrics", "Metrics", metrics_page).

    route: its address, with {name} where the page is about one run. title: its link in the navigation of a
    run; "" for a page that other pages lead to. register: adds the page at that route to the server.
    """

    route: str
    title: str
    register: Callable[["Site", str], None]

    @property
    def below(self) -> str:
        """The route below that of the run, such as "metrics"; "" for the overview."""
        return self.route.removeprefix(RUN).strip("/")


@dataclass(frozen=True)
class Site:
    """The runs that the dashboard shows, and its pages."""

    runs: RunsFolder
    pages: tuple[Page, ...]
