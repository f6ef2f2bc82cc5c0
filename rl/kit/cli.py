"""`dorado env …`: the commands, and nothing else; what they do is in the modules beside this one."""

import json
from typing import Annotated

import typer

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
