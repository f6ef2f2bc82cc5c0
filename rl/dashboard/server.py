"""`dorado dashboard`: the pages, in a process of their own.

`PAGES` is the one list of them: routes, navigation and the browser's tests follow from it.
"""

import ipaddress
import socket

from nicegui import app, ui

from rl.config_file import ConfigError
from rl.dashboard.page import RUN, Page, Site
from rl.dashboard.pages.config import config_page
from rl.dashboard.pages.environments import environments_page
from rl.dashboard.pages.experts import experts_page
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

PAGES: tuple[Page, ...] = (
    Page("/", "", runs_page),
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
        dark=None,
        reload=False,
        show=False,
        show_welcome_message=False,
        # A busy machine or network: after less a page that lost its connection would begin anew.
        reconnect_timeout=10.0,
    )
