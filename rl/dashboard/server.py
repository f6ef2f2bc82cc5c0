"""`dorado dashboard`: the pages, in a process of their own."""

import ipaddress
import socket

from nicegui import app, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rl.config_file import ConfigError
from rl.dashboard.config_page import config_page
from rl.dashboard.environments_page import environments_page
from rl.dashboard.experts_page import experts_page
from rl.dashboard.health_page import health_page
from rl.dashboard.metrics_page import metrics_page
from rl.dashboard.overview_page import overview_page
from rl.dashboard.run_data import RunsFolder
from rl.dashboard.runs_page import runs_page
from rl.dashboard.timeline_page import timeline_page


def add_pages(runs: RunsFolder) -> None:
    """Register all pages."""
    runs_page(runs)
    overview_page(runs)
    metrics_page(runs)
    timeline_page(runs)
    environments_page(runs)
    experts_page(runs)
    health_page(runs)
    config_page(runs)


def check_address(host: str, port: int) -> None:
    """Raises ConfigError where the host is not this machine alone, or the port is not free."""
    try:
        loopback = host == "localhost" or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"--host: {host} has to be 127.0.0.1 or localhost, for the pages ask for no password; from "
            f"another machine, forward the port: ssh -L {port}:127.0.0.1:{port} MACHINE"
        )
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port: {port} cannot be used ({error}); choose another") from None


def serve(runs: RunsFolder, host: str, port: int) -> None:
    """Serve the pages until the process is interrupted."""
    add_pages(runs)
    # A page of somebody else's whose name was pointed to this machine cannot read what is here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", host])
    ui.run(
        host=host,
        port=port,
        title="Dorado",
        dark=None,
        reload=False,
        show=False,
        show_welcome_message=False,
    )
