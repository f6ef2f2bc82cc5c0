"""`dorado env …`: the commands, and nothing else; what they do is in the modules beside this one."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from rl.config_error import ConfigError

OK, FAILED, BAD_INPUT = 0, 1, 2
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(help="An installed name, module:Name or file.py:Name.")]
Config = Annotated[str, typer.Option("--config", help="Its settings, as a JSON object.")]
app = typer.Typer(no_args_is_help=True, help="Write, prove and try environments.")


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """The environments that are installed."""
    from rl.env_tools.listing import installed

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
    """Check that an environment keeps its promises: no model is needed."""
    from rl.env_tools.check.report import rendered
    from rl.env_tools.check.run import check as run_check
    from rl.env_tools.named_env import read_settings

    try:
        report = run_check(name, read_settings(config), seconds=seconds)
    except ConfigError as error:
        raise _bad_input(error) from None
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        from rich.console import Console

        Console().print(rendered(report))
    raise typer.Exit(0 if report.passed else FAILED)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Small letters, digits, - and _.")],
    folder: Annotated[Path, typer.Option("--in", help="Where to write its folder.")] = Path(),
) -> None:
    """Write a package with an environment, a test and a README, to begin with."""
    from rl.env_tools.scaffold import write_package

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
    user: Annotated[bool, typer.Option("--user", help="Speak for its user, too.")] = False,
) -> None:
    """Play an environment yourself: tool(argument=value), or plain text, or :quit."""
    # Lines can be edited and called back. Not everywhere there.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

    from envs.session import EnvFault, HostFault
    from rl.env_tools.named_env import read_settings
    from rl.env_tools.play import Player, find_task

    try:
        env_class, settings, task = find_task(name, read_settings(config), seed, difficulty)
        env = env_class(settings)
        if user and not env.has_user:
            raise ConfigError(f"--user: environment {name!r} has no user with these settings")
    except ConfigError as error:
        raise _bad_input(error) from None
    try:
        player = Player(env, lambda: input("> "), typer.echo, user=user)
        rewards = player.play(task)
    except EnvFault as fault:
        typer.echo(f"{fault.trace}error: {fault}", err=True)
        raise typer.Exit(FAILED) from None
    except HostFault as fault:
        typer.echo(f"error: {fault}", err=True)
        raise typer.Exit(FAILED) from None
    typer.echo("rewards: " + (", ".join(f"{k} {v:g}" for k, v in rewards.items()) or "none"))


@app.command()
def soak(
    name: Name = "",
    all_: Annotated[bool, typer.Option("--all", help="Every one that is installed.")] = False,
    config: Config = "",
    episodes: Annotated[int, typer.Option(min=1, help="At once.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Of so many episodes, undisturbed.")] = 2,
    seconds: Annotated[float, typer.Option(min=0, help="Instead of --rounds.")] = 0.0,
    latency: Annotated[float, typer.Option(min=0, help="Mean of a turn, in ms.")] = 20.0,
    cancel: Annotated[float, typer.Option(min=0, max=1, help="Share cancelled in a call.")] = 0.05,
    kill_hosts: Annotated[int, typer.Option(min=0, help="Host processes killed.")] = 1,
    hosts: Annotated[int, typer.Option(min=1, help="Host processes.")] = 2,
    factor: Annotated[float, typer.Option(min=1, help="Suggested deadline / p99.")] = 10.0,
    write: Annotated[Path | None, typer.Option(help="Where to write the deadlines.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no report.")] = False,
) -> None:
    """Many episodes at once, calls cancelled, hosts killed: what leaks, what is lost, what takes how long."""
    from rl.env_tools.soak.figures import Plan
    from rl.env_tools.soak.report import soak_and_report

    plan = Plan(
        episodes=episodes,
        rounds=rounds,
        seconds=seconds,
        latency_ms=latency,
        cancel=cancel,
        kills=kill_hosts,
        hosts=hosts,
    )
    try:
        passed = soak_and_report(
            name, config, plan, every=all_, factor=factor, write=write, as_json=as_json
        )
    except ConfigError as error:
        raise _bad_input(error) from None
    raise typer.Exit(OK if passed else FAILED)


@app.command("eval")
def eval_(
    name: Annotated[str, typer.Argument(help="NAME, module:Class or file.py:Class.")],
    model: Annotated[str, typer.Option(help="A checkpoint folder, or a server's URL.")],
    tasks: Annotated[int, typer.Option(min=1, help="Held-out tasks, each played once.")] = 20,
    at_once: Annotated[int, typer.Option(min=1, help="Episodes at the same time.")] = 8,
    temperature: Annotated[float | None, typer.Option(help="0: greedy. [default: 1]")] = None,
    config: Config = "",
    judge: Annotated[
        list[str] | None, typer.Option(help="A judge of what it answers; may be given again.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="A run's TOML: its judges, [episode], [engine] and [sampling]."),
    ] = None,
    served: Annotated[str, typer.Option(help="The model's name at the server.")] = "",
    out: Annotated[Path | None, typer.Option(help="[default: runs/eval-NAME-DATE]")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the engine's sampling.")] = 0,
) -> None:
    """Let a model play held-out tasks, and watch."""
    from rl.config import load_config
    from rl.env_tools.eval.run import evaluate_and_report, limits_for
    from rl.env_tools.named_env import named_env

    try:
        settings = load_config(run) if run else None
        limits = limits_for(model, settings, temperature)
        table = named_env(name, config, judges=judge or (), run=settings)
        played = evaluate_and_report(
            table,
            model,
            limits,
            tasks=tasks,
            at_once=at_once,
            temperature=temperature,
            served=served,
            out=out,
            seed=seed,
            models=settings.models if settings else (),
        )
    except ConfigError as error:
        raise _bad_input(error) from None
    raise typer.Exit(OK if played else FAILED)


@app.command()
def replay(
    trajectory: Annotated[str, typer.Argument(help="file.jsonl:id, or runs/NAME/id.")],
    turn: Annotated[int | None, typer.Option(help="Stop after it, show the conversation.")] = None,
    judges: Annotated[
        bool, typer.Option("--judges", help="Ask the frozen models of its judges again.")
    ] = False,
) -> None:
    """Give what a policy wrote to the environment again, and show where the two part (exit code 1)."""
    from rl.env_tools.replay import replay_and_report
    from rl.models.server import ServerFailed

    try:
        same = replay_and_report(trajectory, turn, judges=judges)
    except ConfigError as error:
        raise _bad_input(error) from None
    except ServerFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None
    raise typer.Exit(OK if same else FAILED)


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="The pack's folder, which must not exist yet.")],
    domains: Annotated[str, typer.Option(help="How many, or names and files with commas.")] = "20",
    tasks: Annotated[int, typer.Option(min=1, help="Verified tasks, all domains together.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same pack.")] = 0,
    task: Annotated[str, typer.Option(help='Levels that all share, as JSON: {"chain": 2}.')] = "",
    processes: Annotated[int, typer.Option(min=1, help="That work at once.")] = 2,
    with_: Annotated[str, typer.Option("--with", help="A server whose model writes domains.")] = "",
    served: Annotated[str, typer.Option(help="The model's name at the server.")] = "",
    about: Annotated[
        list[str] | None, typer.Option(help="A domain for the model to write; may be given again.")
    ] = None,
) -> None:
    """Make a pack of verified tasks for `id = "generated"`."""
    from rl.env_tools.packs import chosen_domains, fixed_levels, generate, written_domains

    try:
        chosen = chosen_domains(domains)
        sheet = generate(
            out,
            [*chosen, *written_domains(out, chosen, with_, served, about or [])],
            tasks=tasks,
            seed=seed,
            fixed=fixed_levels(task),
            processes=processes,
        )
    except ConfigError as error:
        raise _bad_input(error) from None
    tries = ", ".join(f"{name} {n}" for name, n in sorted(sheet["tries"].items()))
    typer.echo(f"{out}: {sheet['tasks']} tasks in {sheet['seconds']} s; tries: {tries}")


@app.command()
def reword(
    pack: Annotated[Path, typer.Argument(help="A pack.")],
    out: Annotated[Path, typer.Argument(help="The new pack's folder, which must not exist yet.")],
    with_: Annotated[str, typer.Option("--with", help="A server whose model writes.")],
    served: Annotated[str, typer.Option(help="The model's name at the server.")] = "",
    at_once: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 8,
) -> None:
    """Make a pack of a pack: a model puts its requests into other words, and every fact stays."""
    from rl.env_tools.domain_writer import served_writer
    from rl.env_tools.reword import reword

    try:
        head = reword(
            pack, out, served_writer(with_, served), model=served or with_, at_once=at_once
        )
    except ConfigError as error:
        raise _bad_input(error) from None
    told = head["wording"]
    typer.echo(f"{out}: {told['reworded']} requests reworded, {told['as_they_were']} as they were")


@app.command()
def packs(
    folder: Annotated[Path, typer.Argument(help="Where packs lie.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """The packs of a folder."""
    from rl.env_tools.packs import packs_in

    found = packs_in(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for one in found:
        about = one.get("mistake") or (
            f"{one['digest']}  {one['tasks']} tasks, {len(one['domains'])} domains, seed {one['seed']}"
        )
        typer.echo(f"{one['name']}  {about}")


def _bad_input(error: ConfigError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(BAD_INPUT)
