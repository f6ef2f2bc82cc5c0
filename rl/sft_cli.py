"""`dorado sft`: the command; what it does is in rl/cold_start.py and, for chats, in rl/sft.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rl.commands import INTERRUPTED, require
from rl.config_error import ConfigError
from rl.jobs.cli import RunCommand

if TYPE_CHECKING:
    from rl.record.progress import Progress

app = typer.Typer()
FAILED = 1
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


def _find_config(path: Path) -> Path:
    from rl.config_file import find_config

    found = find_config(path)
    if found != path:
        typer.echo(f"config: {found}", err=True)
    return found


ConfigPath = Annotated[
    Path,
    typer.Argument(
        callback=_find_config, help="A TOML file, or one of Dorado's own, such as quickstart.toml."
    ),
]


@app.command(cls=RunCommand, context_settings=OVERRIDES)
def sft(
    context: typer.Context,
    config: ConfigPath,
    out: Annotated[Path | None, typer.Option(help="Where to write the policy.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Chats: a file, or a data set on the Hub. May be given several times."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of a data set on the Hub.")] = "train",
    subset: Annotated[str | None, typer.Option(help="Of a data set on the Hub.")] = None,
) -> None:
    """Train a policy by imitation: of the environments' experts (a cold start), or of the chats of --data."""
    from rl.record.progress import Progress

    if data:
        _on_chats(context, config, out, data, split, subset)
        return
    from rl.config import load_config
    from rl.preflight.check import check_run

    settings = load_config(config, context.args)
    check_run(settings)
    if settings.sft is None:
        raise ConfigError(f"config {config}: there is no [sft] section")
    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} exists already")
    require("torch", "transformers")
    from rl.cold_start import ColdStartError, first_checkpoint, make_cold_start
    from rl.record.progress import COLD_START_SECONDS

    with Progress() as progress:
        progress.stage("cold start", usual=COLD_START_SECONDS)
        try:
            if out is None:
                folder, _ = first_checkpoint(settings, progress.updates)
            else:
                make_cold_start(settings, out, progress.updates)
                folder = str(out)
        except ColdStartError as error:
            raise _end(progress, f"error: {error}", FAILED) from None
        progress.note(f"policy: {folder}")


def _on_chats(
    context: typer.Context,
    config: Path,
    out: Path | None,
    data: list[str],
    split: str,
    subset: str | None,
) -> None:
    from rl.chat_data import ChatSource
    from rl.config_file import read_config
    from rl.env_table import anchor_tables
    from rl.record.progress import Progress
    from rl.sft import ChatsConfig, ChatTraining, ChatTrainingError, ChatTrainingStopped, check

    settings = read_config(config, context.args, ChatsConfig, anchor_tables)
    if out is None:
        out = Path(settings.runs_dir) / f"{settings.name}-sft"
    sources = [ChatSource(name, subset, split) for name in data]
    check(settings, sources, out)
    require("torch", "transformers")
    with Progress() as progress:
        try:
            ChatTraining(settings, sources, out, progress).run()
        except ChatTrainingError as error:
            raise _end(progress, f"error: {error}", FAILED) from None
        except ChatTrainingStopped as stopped:
            raise _end(progress, str(stopped), INTERRUPTED) from None
        progress.note(f"policy: {out}")


def _end(progress: "Progress", sentence: str, code: int) -> typer.Exit:
    progress.end(sentence)
    return typer.Exit(code)
