"""`dorado submit | jobs | logs | stop`: the commands; what they do is in rl/jobs/client.py."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rl.commands import CommandWithSettings
from rl.config_error import ConfigError

if TYPE_CHECKING:
    from rl.jobs.client import JobServer

app = typer.Typer()
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
ConfigPath = Annotated[Path, typer.Argument(help="A TOML file, such as configs/quickstart.toml.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Address of Ray's job server; else RAY_API_SERVER_ADDRESS, else this machine's."
    ),
]
JobId = Annotated[str, typer.Argument(help="As `dorado submit` and `dorado jobs` print it.")]


class RunCommand(CommandWithSettings):
    """A command that takes the settings of a run."""

    def settings(self) -> Iterable[str]:
        from rl.config import RunConfig

        return RunConfig.model_fields


@app.command(
    cls=RunCommand,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def submit(
    context: typer.Context,
    config: ConfigPath,
    address: AddressOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print what the run prints, until it ends.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with a run, as for `train`; its folder is the cluster's."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUE]",
            help="A variable of the job, such as WANDB_API_KEY; without a value, as it is set here.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
) -> None:
    """Run a config as a job on a Ray cluster. Any setting can be changed, as for `train`."""
    from rl.jobs import client as jobs
    from rl.jobs import request as job_request

    with _job_errors():
        settings, request = job_request.prepare(config, context.args, resume, env or ())
        if dry_run:
            return typer.echo(request.shown)
        address = jobs.address_of(address)
        server = jobs.connect(address)
        job_request.check_resources(settings, jobs.nodes_of(address))
        id = jobs.submit(server, request)
        typer.echo(f"job: {id}\nrun folder: {request.metadata['folder']}")
        if follow:
            raise typer.Exit(_follow(server, id))


@app.command("jobs")
def list_jobs(
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """The jobs of a Ray cluster, the newest first."""
    from rich.console import Console

    from rl.jobs import client as jobs

    with _job_errors():
        found = jobs.jobs(jobs.connect(jobs.address_of(address)))
    if as_json:
        typer.echo(json.dumps({"jobs": [asdict(job) for job in found]}, indent=1))
    else:
        Console(markup=False).print(jobs.table(found) if found else "no job was submitted yet")


@app.command()
def logs(
    id: JobId,
    address: AddressOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False,
) -> None:
    """Print the output of a job."""
    from rl.jobs import client as jobs

    with _job_errors():
        server = jobs.connect(jobs.address_of(address))
        if follow:
            raise typer.Exit(_follow(server, id))
        typer.echo(jobs.logs(server, id), nl=False)


@app.command()
def stop(id: JobId, address: AddressOption = None) -> None:
    """Ask a job's run to end with a checkpoint, and wait until it has."""
    from rl.jobs import client as jobs

    with _job_errors():
        server = jobs.connect(jobs.address_of(address))
        job, running = jobs.stop(server, id, lambda text: typer.echo(text, nl=False))
    typer.echo(f"{id}: {job.status}" if running else f"{id}: had ended before, {job.status}")


def _follow(server: "JobServer", id: str) -> int:
    """The exit code of a job that is followed to its end; Ctrl-C leaves it running."""
    from rl.jobs import client as jobs

    try:
        job = jobs.follow(server, id, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        typer.echo(f"{id} goes on: `dorado stop {id}` ends it", err=True)
        return INTERRUPTED
    typer.echo(f"{id}: {job.status}", err=True)
    return jobs.ENDED[job.status]


@contextmanager
def _job_errors() -> Iterator[None]:
    from rl.jobs.client import JobError

    try:
        yield
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except JobError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None
