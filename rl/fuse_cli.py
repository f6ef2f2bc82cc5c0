"""`dorado model fuse`: the command; what it does is in trainer/fusion."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rl.commands import require
from rl.config_error import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.fusion.config import FusionConfig
    from trainer.fusion.report import FusionReport, KindReport

FAILED = 1
POLICY = "A folder, or a run: runs/NAME, runs/NAME@best, runs/NAME@STEP."


def fuse(
    out: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    models: Annotated[list[str], typer.Argument(help=f"Two or more. {POLICY}")],
    base: Annotated[
        str | None, typer.Option(help=f"The model that they began as. {POLICY}")
    ] = None,
    method: Annotated[str, typer.Option(help="average, task, ties, dare or sce.")] = "average",
    weights: Annotated[str, typer.Option(help="Of the models, with commas; equal without.")] = "",
    scale: Annotated[float, typer.Option(help="Factor of the merged task vector.")] = 1.0,
    density: Annotated[
        float | None, typer.Option(help="Share kept of a task vector: ties 0.2, dare 0.5, sce 1.")
    ] = None,
    drop: Annotated[float, typer.Option(help="With ties and sce: DARE's dropout before.")] = 0.0,
    normalise: Annotated[
        bool, typer.Option("--normalise/--no-normalise", help="Task vectors get equal norms.")
    ] = False,
    router: Annotated[
        str, typer.Option(help="Of the routers: average, base, method, or N of a model.")
    ] = "average",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; else the base's.")] = None,
    seed: Annotated[int, typer.Option(help="Of dropout.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fuse models that began as one, e.g. experts of several domains, into a new one."""
    if out.exists():
        raise ConfigError(f"{out} exists already")
    config = fusion_config(
        method=method, weights=_weights(weights), scale=scale, density=density, drop=drop,
        normalise=normalise, router=int(router) if router.isdecimal() else router, dtype=dtype, seed=seed,
    )  # fmt: skip
    try:
        config.check(len(models), base=base is not None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    require("torch", "transformers")
    from rich.console import Console

    from rl.record.policy_folder import policy_folder

    folders = [policy_folder(one) for one in models]
    report = fuse_folders(folders, None if base is None else policy_folder(base), config, out)
    if as_json:
        typer.echo(json.dumps([vars(kind) for kind in report.kinds()], indent=1))
        return
    Console().print(table(report))
    typer.echo(f"{out}: {_parameters(report):,} parameters of {len(models)} models, by {method}")


def fusion_config(**values: object) -> "FusionConfig":
    """Settings of a fusion. Raises ConfigError that names the option."""
    from pydantic import ValidationError

    from trainer.fusion.config import FusionConfig

    try:
        return FusionConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if key == "router":
            said = f"{first['input']!r} has to be average, base, method, or the number of a model"
        elif first["type"] == "value_error":
            said = str(first.get("ctx", {}).get("error"))
        else:
            said = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
        raise ConfigError(f"--{key}: {said}" if key else f"--{said}") from None


def fuse_folders(
    models: list[Path], base: Path | None, config: "FusionConfig", out: Path
) -> "FusionReport":
    """Fuse folders into a new one. Raises ConfigError where they do not fit, typer.Exit where the disk
    fails."""
    from trainer.fusion.fuse import Fusion

    try:
        fusion = Fusion(models, base, config)
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < fusion.num_bytes:
            raise ConfigError(
                f"{out}: the fused model needs {fusion.num_bytes / 2**30:.1f} GiB, and its disk has "
                f"{free / 2**30:.1f} GiB left"
            )
        return fusion.write(out, _progress)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        typer.echo(f"error: {out} was not written: {error}", err=True)
        raise typer.Exit(FAILED) from None


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{done} of {total} tensors", nl=done == total, err=True)


def _weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(",") if one.strip())
    except ValueError:
        raise ConfigError(
            f"--weights: {text!r} has to be numbers with commas between them"
        ) from None


def _parameters(report: "FusionReport") -> int:
    return report.kinds()[-1].parameters


def table(report: "FusionReport") -> "Table":
    """The report by kinds of tensors: how far each model is from the base, and what was taken of it."""
    from rich.table import Table

    apart = "from the result" if report.base is None else "from the base"
    found = Table(title=f"Distances {apart}, relative to its norm; share of elements taken")
    for heading in ("kind", "tensors", "by"):
        found.add_column(heading)
    for number in range(1, len(report.models) + 1):
        found.add_column(f"model {number}", justify="right")
    for heading in ("result", "conflicts"):
        found.add_column(heading, justify="right")
    for kind in report.kinds():
        found.add_row(kind.kind, str(kind.tensors), kind.how, *_numbers(kind))
    return found


def _numbers(kind: "KindReport") -> list[str]:
    size = kind.base_norm or 1.0
    models = [
        f"{norm / size:.2%}, {took:.0%}" for norm, took in zip(kind.norms, kind.took, strict=True)
    ]
    opposed = "" if kind.conflicts is None else f"{kind.conflicts:.0%}"
    return [*models, f"{kind.merged_norm / size:.2%}", opposed]
