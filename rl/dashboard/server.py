"""`dorado dashboard`: the pages, in a process of their own."""

import ipaddress
import socket

from nicegui import app, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rl.config_file import ConfigError
from rl.dashboard.config_page import config_page
from rl.dashboard.environments_page import environments_page
from rl.dashboard.experts_page import experts_page
from rl.dashboard.group_page import group_page
from rl.dashboard.health_page import health_page
from rl.dashboard.metrics_page import metrics_page
from rl.dashboard.overview_page import overview_page
from rl.dashboard.password import VARIABLE, AskPassword
from rl.dashboard.run_data import RunsFolder
from rl.dashboard.runs_page import runs_page
from rl.dashboard.timeline_page import timeline_page
from rl.dashboard.trajectories_page import trajectories_page
from rl.dashboard.trajectory_page import trajectory_page


def add_pages(runs: RunsFolder) -> None:
    """Register all pages."""
    runs_page(runs)
    overview_page(runs)
    metrics_page(runs)
    trajectories_page(runs)
    group_page(runs)
    trajectory_page(runs)
    timeline_page(runs)
    environments_page(runs)
    experts_page(runs)
    health_page(runs)
    config_page(runs)


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
    if _loopback(host):
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
