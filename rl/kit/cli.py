"""`dorado env …`: the commands, and nothing else; what they do is in the modules beside this one."""

import json
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


def _bad_input(error: ConfigError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(BAD_INPUT)
