"""The command line: `dorado train | sft | status | dashboard | export | …`, and groups such as `dorado env`.

Jobs on a cluster (`dorado submit | jobs | logs | stop`) are in rl/jobs/cli.py, `dorado sft` in rl/sft_cli.py.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from rl.commands import Commands, not_here, require
from rl.config_error import ConfigError
from rl.dashboard.cli import app as dashboard_app
from rl.env_tools.cli import app as env_app
from rl.env_tools.eval.cli import app as eval_app
from rl.fuse_cli import fuse
from rl.jobs.cli import RunCommand
from rl.jobs.cli import app as jobs_app
from rl.judge_tools.cli import app as judge_app
from rl.recipes.cli import app as recipe_app
from rl.reward_cli import app as reward_app
from rl.sandbox_cli import app as sandbox_app
from rl.sft_cli import OVERRIDES, ConfigPath
from rl.sft_cli import app as sft_app

if TYPE_CHECKING:
    from rl.config import Mode, RunConfig

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which takes what stands in square brackets for its own
    help="Asynchronous reinforcement learning for Mixture-of-Experts language models.",
)
model_app = typer.Typer(no_args_is_help=True, help="Make and inspect policies.")
app.add_typer(model_app, name="model")
app.add_typer(env_app, name="env")
app.add_typer(judge_app, name="judge")
app.add_typer(recipe_app, name="recipe")
app.add_typer(reward_app, name="reward")
app.add_typer(sandbox_app, name="sandbox")
app.add_typer(sft_app)
app.add_typer(eval_app)
app.add_typer(dashboard_app)
app.add_typer(jobs_app)
model_app.command("fuse")(fuse)
FAILED = 1
Number = TypeVar("Number", int, float)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dorado {version('dorado-rl')}")
        raise typer.Exit(0)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it, and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(cls=RunCommand, context_settings=OVERRIDES)
def train(
    context: typer.Context,
    config: ConfigPath,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the result, start nothing.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on: a run folder or a run's name, or either with /step_N."),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="With --resume: from its best checkpoint, not its last.")
    ] = False,
) -> None:
    """Train a policy. Any setting can be changed: --steps 10 --learner.optim.lr 1e-4"""
    from rl.config_file import read_origins
    from rl.preflight.check import check_run
    from rl.preflight.environments import check_hub_rows, read_later
    from rl.preflight.settings import resolved
    from rl.preflight.tokenizer import check_new_tokenizer

    settings = _load(config, context.args)
    going_on = None
    if best and resume is None:
        raise ConfigError("--best goes with --resume: say which run goes on")
    if resume is not None:
        from rl.loop.resume import find_resume

        settings, going_on = find_resume(resume, settings, best=best)
    check_run(settings)
    if dry_run:
        from rl.record.run_folder import dump_toml

        if not not_here("torch", "transformers"):
            check_new_tokenizer(settings)
        typer.echo(dump_toml(resolved(settings)), nl=False)
        for sentence in read_later(settings):
            typer.echo(f"note: {sentence}", err=True)
        if said := not_here("torch", "transformers", "ray", "vllm"):
            typer.echo(f"note: the settings are right, but {said}", err=True)
        raise typer.Exit(0)
    require("ray")
    check_hub_rows(settings)
    from rl.launch import train_or_say_why

    raise typer.Exit(train_or_say_why(settings, going_on, read_origins(config, context.args)))


@app.command(cls=RunCommand, context_settings=OVERRIDES)
def compare_modes(
    context: typer.Context,
    config: ConfigPath,
    modes: Annotated[str, typer.Option(help="Which, with commas.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run a config in every mode, on the same tasks, seeds and learner steps, and compare."""
    from rich.console import Console

    from rl.compare import MODES, CompareError, compare, table
    from rl.preflight.check import check_run

    settings = _load(config, context.args)
    check_run(settings)
    wanted = modes.split(",") if modes else list(MODES)
    chosen: list[Mode] = [mode for mode in MODES if mode in wanted]
    if len(chosen) != len(wanted):
        raise ConfigError(f"--modes: {modes} has to name some of {', '.join(MODES)}")
    require("ray")
    try:
        result = compare(settings, config, context.args, chosen)
    except CompareError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        Console().print(table(result))


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how a run stands or has ended; of a live one also what its trajectories wait for."""
    from dataclasses import asdict

    from rich.console import Console

    from rl.record.evaluations import read_evaluations
    from rl.record.status import describe, in_progress, read_status
    from rl.record.summary import read_summary

    state = read_status(run)
    live = in_progress(run)
    if as_json:
        rows = [asdict(row) for row in read_evaluations(run)]
        typer.echo(json.dumps({"live": live, **state.as_json(), "evaluations": rows}, indent=1))
    else:
        found = read_evaluations(run)
        Console().print(describe(state, live=live, summary=read_summary(run), evaluations=found))


@app.command()
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(help="runs/NAME/checkpoints/step_N, runs/NAME (its last), or N with --run."),
    ],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    run: Annotated[Path | None, typer.Option(help="The run folder, where N is given.")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run folder: its best checkpoint, not its last.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")
    ] = "float32",
) -> None:
    """Write a checkpoint's policy as a Hugging Face folder, which transformers and vLLM load."""
    from rl.record.checkpoint_choice import find_checkpoint, read_checkpoint

    if folder.exists():
        raise ConfigError(f"{folder} exists already")
    source = find_checkpoint(checkpoint, run, best=best)
    record = read_checkpoint(source)
    from trainer.checkpoint_folder import CheckpointError
    from trainer.export import export_policy

    try:
        parameters = export_policy(source, folder, dtype)
    except (CheckpointError, OSError) as error:
        typer.echo(f"error: {folder} was not written: {error}", err=True)
        raise typer.Exit(FAILED) from None
    typer.echo(
        f"{folder}: {record.model['model_type']}, {parameters / 1e6:.1f} M parameters in {dtype}, "
        f"version {record.version} from {source}"
    )


TraceOption = Annotated[
    str | None,
    typer.Option("--trace", help="A finished run's folder: play what it played, at its costs."),
]


@app.command(cls=RunCommand, context_settings=OVERRIDES)
def simulate(
    context: typer.Context,
    config: ConfigPath,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    trace: TraceOption = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit costs to [measured] and print them.")
    ] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as --KEY VALUE.")
    ] = None,
) -> None:
    """Simulate the modes of a run on a cluster. Any setting can be changed: --cluster.devices 128"""
    from rich.console import Console

    from rl.simulator.calibrate import fit
    from rl.simulator.predict import load_simulation
    from rl.simulator.report import simulate as run_all
    from rl.simulator.report import table

    overrides = [f"--{one}" for one in change or ()] + context.args
    settings = load_simulation(config, overrides, trace)
    result = fit(settings) if calibrate else run_all(settings)
    if as_json or calibrate:
        typer.echo(json.dumps(result, indent=1))
    else:
        Console().print(table(result))


@app.command(cls=RunCommand, context_settings=OVERRIDES)
def plan(
    context: typer.Context,
    config: ConfigPath = Path("quickstart.toml"),
    live: Annotated[str, typer.Option(help="Values of K, with commas.")] = "",
    share: Annotated[str, typer.Option(help="Rollout shares of the devices.")] = "",
    over_dispatch: Annotated[str, typer.Option(help="Batches begun and not trained on.")] = "",
    concurrency: Annotated[str, typer.Option(help="Sequences per engine.")] = "",
    trace: TraceOption = None,
    here: Annotated[
        bool, typer.Option("--here", help="Measure this machine, and propose settings for it.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0, help="With --here: start no further engine after so many.")
    ] = 60.0,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="With --here: try compiled engines too.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print all points, as JSON.")] = False,
) -> None:
    """Simulate mode dora over K, split and concurrency; or --here: propose settings for this machine."""
    if here:
        from rl.planning.refusal import refuse_sweep

        refuse_sweep(live, share, over_dispatch, concurrency, trace or "")
        require("torch", "vllm")
        from rl.planning.report import plan_here

        plan_here(_load(config, context.args), seconds, compile=compile, as_json=as_json)
        return
    from rich.console import Console

    from rl.simulator.predict import load_simulation
    from rl.simulator.sweep import settings as combined
    from rl.simulator.sweep import sweep, table

    simulation = load_simulation(config, context.args, trace)
    points = combined(
        simulation,
        _numbers("--live", live, int),
        _numbers("--share", share, float),
        _numbers("--over-dispatch", over_dispatch, float),
        _numbers("--concurrency", concurrency, int),
    )
    outcomes = sweep(
        simulation, points, lambda done, total: typer.echo(f"{done} of {total} simulated", err=True)
    )
    if as_json:
        typer.echo(json.dumps({"points": [one.as_json() for one in outcomes]}, indent=1))
    else:
        Console().print(table(outcomes))


@model_app.command("formats")
def model_formats(
    model: Annotated[str, typer.Argument(help="A folder or a Hub name; none: all formats.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how a checkpoint writes thoughts, tool calls, results and history."""
    from rl.model_formats import describe, known_formats

    if model:
        require("transformers")
    found = describe(model) if model else known_formats()
    if as_json:
        typer.echo(json.dumps(dict(found), indent=1, ensure_ascii=False))
        return
    width = max(map(len, found))
    for name, text in found.items():
        typer.echo(f"{name:<{width}}  {text}")


@model_app.command("init")
def model_init(
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    family: Annotated[str, typer.Option(help="longcat_flash or qwen3_moe")] = "longcat_flash",
    preset: Annotated[str, typer.Option(help="tiny (2-3 M parameters) or small (100 M)")] = "tiny",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the weights.")] = 0,
) -> None:
    """Write a small policy with random weights: config, weights, tokenizer, chat template."""
    from pydantic import ValidationError

    from rl.config import InitConfig, ModelConfig, RunConfig
    from rl.env_table import EnvTable

    if folder.exists():
        raise ConfigError(f"{folder} exists already")
    try:
        init = InitConfig.model_validate({"family": family, "preset": preset})
    except ValidationError as error:
        first = error.errors()[0]
        message = f"--{first['loc'][0]}: {first['msg'].lower()}, got {first['input']!r}"
        raise ConfigError(message) from None
    from rl.cold_start import corpus
    from trainer.small.init_model import init_checkpoint

    settings = RunConfig(
        name="init",
        seed=seed,
        model=ModelConfig(init=init),
        env=tuple(EnvTable(id=id) for id in ("calculator", "orders", "sensors")),
    )
    parameters = init_checkpoint(
        folder, family=init.family, preset=init.preset, corpus=list(corpus(settings)), seed=seed
    )
    typer.echo(f"{folder}: {init.family} {init.preset}, {parameters / 1e6:.1f} M parameters")


def _numbers(option: str, text: str, kind: type[Number]) -> list[Number]:
    """Read numbers with commas between them; an empty text has none. Raises ConfigError."""
    try:
        return [kind(one) for one in text.split(",") if one.strip()]
    except ValueError:
        raise ConfigError(
            f"{option}: {text!r} has to be numbers with commas between them"
        ) from None


def main() -> None:
    """Entry point of the console command."""
    # Read when torch is loaded: threads that spin while they wait take cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no terminal's alphabet ends a command
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    app()


def _load(path: Path, overrides: list[str]) -> "RunConfig":
    from rl.config import load_config

    return load_config(path, overrides)
