"""`dorado sandbox serve`: lets episodes of other machines run their agents on this one."""

import ipaddress
import os
import sys
from typing import Annotated

import typer

from rl.commands import require
from rl.config_error import ConfigError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Run agents of other machines' episodes here."""


@app.command()
def serve(
    sandbox: Annotated[
        str, typer.Option(help="bubblewrap, docker, podman or none: where agents run here.")
    ] = "bubblewrap",
    host: Annotated[str, typer.Option(help="The address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 7070,
    most: Annotated[int, typer.Option(min=1, help="Workshops at once; more wait.")] = 64,
) -> None:
    """Serve workshops; the token that clients have to show is in DORADO_SANDBOX_TOKEN.

    An environment takes them with `sandbox = "http://HOST:PORT"` and the same variable.
    """
    require("aiohttp")
    from envs.agents.provider import lacking
    from envs.agents.remote_wire import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token and not _loopback(host):
        raise ConfigError(
            f"--host {host}: whoever reaches it could run programs here; set {TOKEN_VARIABLE}, a secret "
            "that clients have to show, for this command and for the runs"
        )
    if wrong := lacking(sandbox):
        raise ConfigError(f"--sandbox {sandbox}: {wrong}")
    if sandbox == "none":
        typer.echo('sandbox "none": agents may do what you may', err=True)
    _run(sandbox, token, host, port, most)


def _run(sandbox: str, token: str, host: str, port: int, most: int) -> None:
    """Serve until a signal ends it, and end all workshops."""
    import asyncio

    from aiohttp import web

    from envs.agents.workshop_server import WorkshopServer

    async def served() -> None:
        server = WorkshopServer(sandbox, token=token, most=most)
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=30.0)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
            name = runner.addresses[0]
            typer.echo(f"{sandbox} workshops at http://{name[0]}:{name[1]}, {most} at once")
            sys.stdout.flush()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    try:
        asyncio.run(served())
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error.strerror or error}") from None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
