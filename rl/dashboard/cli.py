"""`dorado dashboard` and `dorado report`: a run to be looked at, live or as one file."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rl.config_error import ConfigError

if TYPE_CHECKING:
    from rl.dashboard.run_data import RunData

app = typer.Typer()


@app.command()
def dashboard(
    runs_dir: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path(
        "runs"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    host: Annotated[
        str, typer.Option(help="Others than this machine's own need a password.")
    ] = "127.0.0.1",
    password_file: Annotated[
        Path | None,
        typer.Option(help="Its first line is asked for; also DORADO_DASHBOARD_PASSWORD."),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="A recorded quickstart, no runs.")] = False,
) -> None:
    """Show runs on a web page, live. It reads their folders and writes nothing."""
    from rl.dashboard.demo import PART, demo_runs

    note = f"the demo is {PART}" if demo else ""
    if note:
        typer.echo(note)
    with demo_runs() if demo else nullcontext(runs_dir) as folder:
        _serve(folder, note, host, port, password_file)


def _serve(folder: Path, note: str, host: str, port: int, password_file: Path | None) -> None:
    from rl.dashboard.run_data import RunsFolder
    from rl.dashboard.text_index import default_cache, remove_old

    # The demo's folder goes away with the dashboard, and takes its text index along.
    cache = folder / ".cache" if note else default_cache()
    remove_old(cache)
    runs = RunsFolder(folder, note, cache)
    try:
        from rl.dashboard.password import read_password
        from rl.dashboard.server import check_address, serve
    except ImportError as error:
        raise ConfigError(
            f"dashboard: {error}; install it with pip install 'dorado-rl[dashboard]'"
        ) from None
    password = read_password(password_file)
    check_address(host, port, password)
    typer.echo(f"dashboard of {runs.path}: http://{host}:{port} (Ctrl-C ends it)")
    serve(runs, host, port, password)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default NAME.html in this folder.")
    ] = None,
) -> None:
    """Write a run as one HTML file that works without a network: charts, alerts, tools, examples."""
    from rl.dashboard.report import report as made
    from rl.dashboard.run_data import RunData

    if not (run / "config.toml").is_file():
        raise ConfigError(
            f"report {run}: this is no run folder; one is wanted, such as runs/quickstart"
        )
    data = RunData(run.resolve())
    data.refresh()
    data.look_for_changes()
    _read_texts(data)
    file = out or Path(f"{data.name}.html")
    try:
        file.write_text(made(data), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {file} cannot be written: {error}") from None
    typer.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


def _read_texts(data: "RunData") -> None:
    """Read all records for the tables of tools; without a cache that can be written there are none."""
    import sqlite3

    try:
        while not data.texts.grow(10.0):
            typer.echo(f"{data.texts.read():,} trajectories are read", err=True)
    except (sqlite3.Error, OSError) as error:
        typer.echo(f"note: the trajectories cannot be read: {error}", err=True)
