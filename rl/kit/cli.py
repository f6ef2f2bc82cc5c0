"""`dorado env …`: the commands, and nothing else; what they do is in the modules beside this one."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from rl.config_file import ConfigError

FAILED, BAD_INPUT = 1, 2
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(help="An installed name, module:Name or file.py:Name.")]
Config = Annotated[str, typer.Option("--config", help="Its settings, as a JSON object.")]
app = typer.Typer(no_args_is_help=True, help="Write, prove and try environments.")


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """The environments that are installed."""
    from rl.kit.listing import installed

    found = installed()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    width = max((len(one["name"]) for one in found), default=0)
    for one in found:
        typer.echo(f"{one['name']:{width}}  {one['summary']}  ({one['package']})")


@app.command()
def check(
    name: Name,
    config: Config = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="Deadline of each of its acts.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Whether an environment keeps its promises: no model is needed."""
    from rl.kit.check import check as look
    from rl.kit.check import read_settings
    from rl.kit.sheet import rendered

    try:
        sheet = look(name, read_settings(config), seconds=seconds)
    except ConfigError as error:
        raise _bad_input(error) from None
    if as_json:
        typer.echo(json.dumps(sheet.as_json(), indent=1))
    else:
        from rich.console import Console

        Console().print(rendered(sheet))
    raise typer.Exit(0 if sheet.passed else FAILED)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Small letters, digits, - and _.")],
    folder: Annotated[Path, typer.Option("--in", help="Where to write its folder.")] = Path(),
) -> None:
    """Write a package with an environment, a test and a README, to begin with."""
    from rl.kit.scaffold import write_package

    try:
        written = write_package(name, folder)
    except ConfigError as error:
        raise _bad_input(error) from None
    typer.echo(f"{written}: read {written / 'README.md'}, then change the environment to yours")


@app.command()
def play(
    name: Name,
    config: Config = "",
    seed: Annotated[int, typer.Option(help="Which task.")] = 0,
    difficulty: Annotated[int | None, typer.Option(help="Of a graded environment.")] = None,
) -> None:
    """Play an environment yourself: tool(argument=value), or plain text, or :quit."""
    # Lines can be edited and called back. Not everywhere there.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

    from envs.session import EnvFault
    from rl.kit.check import read_settings
    from rl.kit.play import Player, find_task

    try:
        env_class, settings, task = find_task(name, read_settings(config), seed, difficulty)
    except ConfigError as error:
        raise _bad_input(error) from None
    try:
        player = Player(env_class(settings), lambda: input("> "), typer.echo)
        rewards = player.play(task)
    except EnvFault as fault:
        typer.echo(f"{fault.trace}error: {fault}", err=True)
        raise typer.Exit(FAILED) from None
    typer.echo("rewards: " + (", ".join(f"{k} {v:g}" for k, v in rewards.items()) or "none"))


def _bad_input(error: ConfigError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(BAD_INPUT)
