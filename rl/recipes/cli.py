"""`dorado recipe run DIR`: the command; what it does is in rl/recipes/runner.py."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Run several stages after one another.")


@app.callback()
def recipe() -> None:
    """Keep `run` a command of the group."""


@app.command()
def run(
    file: Annotated[
        Path,
        typer.Argument(
            help="A folder with recipe.toml, such a file, or Dorado's own: recipes/quick."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every stage, print the plan, start nothing.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the folder, in place of the recipe's.")
    ] = None,
    runs_dir: Annotated[Path | None, typer.Option(help="Where that folder is.")] = None,
) -> None:
    """Run a recipe, e.g. cold start, an expert per domain, fusion, RL over all. The same command goes on."""
    from rl.recipes.check import check_stages
    from rl.recipes.config import find_recipe, load_recipe
    from rl.recipes.plan import plan
    from rl.recipes.runner import Runner, StageError, check_state, read_state

    found = find_recipe(file)
    changes: dict[str, object] = {}
    if name is not None:
        changes["name"] = name
    if runs_dir is not None:
        changes["runs_dir"] = str(runs_dir)
    config = load_recipe(found, changes)
    stages = plan(config, found)
    check_stages(stages)
    check_state(config.folder, stages)
    if dry_run:
        state = read_state(config.folder)
        for number, one in enumerate(stages, 1):
            stands = state.get(one.stage.name, {}).get("state", "to do")
            words = " ".join(one.command)
            typer.echo(
                f"{number}/{len(stages)} {one.stage.name} ({one.stage.kind}), {stands}: {words}"
            )
        return
    try:
        Runner(config.folder, found.parent, typer.echo).run(stages)
    except StageError as error:
        typer.echo(f"error: {error}" if error.code == 1 else str(error), err=True)
        raise typer.Exit(error.code) from None
