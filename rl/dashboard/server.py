"""`dorado dashboard`: the pages, in a process of their own.

`PAGES` is the one list of them: routes, navigation and the browser's tests follow from it.
"""

import ipaddress
import socket

from fastapi.exception_handlers import http_exception_handler
from nicegui import Client, app, ui
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rl.config_file import ConfigError
from rl.dashboard.page import RUN, Page, Site
from rl.dashboard.pages.compare import compare_page
from rl.dashboard.pages.config import config_page
from rl.dashboard.pages.environments import environments_page
from rl.dashboard.pages.experts import experts_page
from rl.dashboard.pages.frame import no_such_page
from rl.dashboard.pages.group import group_page
from rl.dashboard.pages.health import health_page
from rl.dashboard.pages.metrics import metrics_page
from rl.dashboard.pages.overview import overview_page
from rl.dashboard.pages.runs import runs_page
from rl.dashboard.pages.timeline import timeline_page
from rl.dashboard.pages.trajectories import trajectories_page
from rl.dashboard.pages.trajectory import trajectory_page
from rl.dashboard.password import VARIABLE, AskPassword
from rl.dashboard.run_data import RunsFolder
from rl.dashboard.visitor import OwnPagesOnly

# A wave over dark blue, the header's.
_FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" '
    'fill="#12263a"/><path d="M5 20c4-9 8-9 11 0s7 9 11-8" fill="none" stroke="#56B4E9" '
    'stroke-width="3.5" stroke-linecap="round"/></svg>'
)
PAGES: tuple[Page, ...] = (
    Page("/", "", runs_page),
    Page("/compare", "", compare_page),
    Page(RUN, "Overview", overview_page),
    Page(f"{RUN}/metrics", "Metrics", metrics_page),
    Page(f"{RUN}/timeline", "Timeline", timeline_page),
    Page(f"{RUN}/trajectories", "Trajectories", trajectories_page),
    Page(f"{RUN}/group/{{group_id:path}}", "", group_page),
    Page(f"{RUN}/trajectory/{{id:path}}", "", trajectory_page),
    Page(f"{RUN}/environments", "Environments", environments_page),
    Page(f"{RUN}/experts", "Experts", experts_page),
    Page(f"{RUN}/health", "Health", health_page),
    Page(f"{RUN}/config", "Config", config_page),
)


def add_pages(runs: RunsFolder) -> None:
    """Register all pages."""
    site = Site(runs, PAGES)
    for page in PAGES:
        page.register(site, page.route)

    @app.exception_handler(404)
    async def nowhere(request: Request, error: Exception) -> Response:
        if request.scope.get("endpoint") is not None and isinstance(error, HTTPException):
            return await http_exception_handler(request, error)  # a file of a page, not a page
        with Client(ui.page(""), request=request) as client:
            no_such_page(site, request.url.path)
        return client.build_response(request, 404)


def check_address(host: str, port: int, password: str | None) -> None:
    """Raises ConfigError where others could connect without a password, or the port is not free."""
    if not _loopback(host) and password is None:
        raise ConfigError(
            f"--host: at {host} other machines could connect, so it needs a password (--password-file FILE, "
            f"or {VARIABLE}); or forward the port from them: ssh -L {port}:127.0.0.1:{port} MACHINE"
        )
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port: {port} cannot be used ({error}); choose another") from None


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def serve(runs: RunsFolder, host: str, port: int, password: str | None = None) -> None:
    """Serve the pages until the process is interrupted."""
    add_pages(runs)
    if password is not None:
        app.add_middleware(AskPassword, password=password)
    # With a password, a name that points here has no cookie of this host's.
    hosts = frozenset({"localhost", "127.0.0.1", host} if password is None else ())
    app.add_middleware(OwnPagesOnly, hosts=hosts)
    ui.run(
        host=host,
        port=port,
        title="Dorado",
        favicon=_FAVICON,
        dark=None,
        reload=False,
        show=False,
        show_welcome_message=False,
        # A busy machine or network: after less a page that lost its connection would begin anew.
        reconnect_timeout=10.0,
    )
