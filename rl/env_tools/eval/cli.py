"""`dorado eval`: the command; what it does is in rl/env_tools/eval/heldout.py."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from rl.commands import CommandWithSettings

app = typer.Typer()
FAILED = 1


class EvalCommand(CommandWithSettings):
    """A command that takes the settings of a run."""

    def settings(self) -> Iterable[str]:
        from rl.config import RunConfig

        return RunConfig.model_fields


@app.command(
    "eval",
    cls=EvalCommand,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def eval_(
    context: typer.Context,
    policy: Annotated[
        str, typer.Argument(help="RUN (its last checkpoint), RUN@STEP, a model folder, or a URL.")
    ],
    config: Annotated[
        Path | None, typer.Option(help="A TOML file whose held-out sets to play, not the run's.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run: its best checkpoint, not its last.")
    ] = False,
    at_once: Annotated[int, typer.Option(min=1, help="Episodes at the same time.")] = 16,
    served: Annotated[str, typer.Option(help="The model's name at the server.")] = "",
    out: Annotated[Path | None, typer.Option(help="[default: runs/eval-NAME-DATE]")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the engine's sampling.")] = 0,
    think: Annotated[
        int,
        typer.Option(
            min=0,
            help="Heavy thinking: so many answers to each task, weighed by the policy; against a vote.",
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Play the held-out sets of a run. Any setting can be changed: --eval.tasks 20"""
    from rich.console import Console

    from rl.config_error import ConfigError
    from rl.config_file import find_config
    from rl.env_tools.eval.heldout import evaluate_target, find_target, table
    from rl.env_tools.eval.think import thinking_shown

    if think == 1:
        raise ConfigError("--think: 1 answer leaves nothing to weigh: 2 or more")
    settings = find_config(config) if config is not None else None
    target = find_target(policy, settings, context.args, best=best)
    console = Console(highlight=False, stderr=as_json)
    outcome = evaluate_target(
        target,
        at_once=at_once,
        served=served,
        out=out,
        seed=seed,
        answers=think,
        console=console,
    )
    if outcome.error:
        typer.echo(f"error: {outcome.error}", err=True)
    if as_json:
        typer.echo(json.dumps(outcome.told, indent=1))
    else:
        console.print(thinking_shown(outcome.thinking) if think else table(outcome.found))
        for env, one in outcome.thinking.items():
            if one.left_out:
                told = f"{env}: {one.left_out} tasks are left out, since an episode failed: {one.fault}"
                console.print(told, markup=False, soft_wrap=True)
        faults = outcome.told["episodes"] - outcome.told["judged"]
        fault = f"; {faults} ended in faults: {outcome.told['first_fault']}" if faults else ""
        console.print(f"trajectories: {outcome.folder}{fault}", markup=False, soft_wrap=True)
    if outcome.error or not outcome.found.rates:
        raise typer.Exit(FAILED)
