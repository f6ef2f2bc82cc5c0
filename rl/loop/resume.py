"""Where a run goes on: which run folder, which checkpoint, and whether these settings may go on from it.

Consumes what the user wrote after `--resume` and the settings of the new part. Produces a `Resume`, or a
ConfigError before anything has started. The learner's own state is `trainer.checkpoint`'s; beside it in a
checkpoint lies run.json, the run's `Position` (`rl.tasks.task_source`). Not kept: what was in flight or
buffered.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from envs.registry import split_file
from rl.config import RunConfig, load_config
from rl.config_file import ConfigError
from rl.record.checkpoint_choice import best_checkpoint, read_checkpoint
from rl.record.position import Position, read_position
from trainer.checkpoint_folder import latest


@dataclass(frozen=True)
class Resume:
    """A run goes on after `step`; where that is its last, only its evaluation is due.

    notes: what the user is to know of the choice of the checkpoint.
    """

    run: Path
    checkpoint: Path
    step: int
    groups: int
    position: Position
    notes: tuple[str, ...] = ()


def find_resume(what: str, config: RunConfig, *, best: bool = False) -> tuple[RunConfig, Resume]:
    """Resolve `--resume WHAT`; returns the settings with the name of that run, too.

    what: a run folder, a run's name in `config.runs_dir`, or either followed by /step_N. best: its best
    checkpoint, in place of the last. Raises ConfigError.
    """
    run, step = _run_and_step(what, Path(config.runs_dir))
    if best and step is not None:
        raise ConfigError(f"--best goes with a run, and --resume {what} names a step")
    notes: list[str] = []
    folder = run / "checkpoints"
    if best:
        found = best_checkpoint(run)
    else:
        found = latest(folder, notes.append) if step is None else folder / f"step_{step}"
    if found is None:
        told = f" ({'; '.join(notes)})" if notes else ""
        raise ConfigError(f"--resume: {run} has no whole checkpoint{told}")
    record = read_checkpoint(found)
    check_same(load_config(run / "config.toml"), config)
    if record.version > config.steps or (
        record.version == config.steps
        and not (config.eval.after and evaluation_is_due(run, config.steps))
    ):
        raise ConfigError(
            f"--resume: {found} is at step {record.version} already and steps is {config.steps}; "
            "give more with --steps"
        )
    groups, position = read_position(found)
    config = config.model_copy(update={"name": run.name, "runs_dir": str(run.parent)})
    return config, Resume(run, found, record.version, groups, position, tuple(notes))


def evaluation_is_due(run: Path, step: int) -> bool:
    """True if the run has trained up to `step` and was not evaluated there."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.endswith("}")]
    except (OSError, ValueError):
        return False
    return not any(
        record.get("step") == step
        and record.get("eval/version", step) == step
        and any(key.startswith("eval/") for key in record)
        for record in records
    )


def check_same(before: RunConfig, now: RunConfig) -> None:
    """Raise ConfigError where a setting differs without which it would be another run.

    The policy, what it starts from, the task streams and how it is talked to; all else may change.
    """
    old, new = _identity(before), _identity(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"--resume: {key} was {_shown(old.get(key))} in this run and is {_shown(new.get(key))} "
                "now; that would be another run"
            )


def _identity(config: RunConfig) -> dict[str, object]:
    lora = config.learner.lora
    found: dict[str, object] = {
        "model": config.model.model_dump(mode="json", exclude_none=True, exclude={"format"}),
        "sft": None if config.sft is None else config.sft.model_dump(mode="json"),
        "seed": config.seed,
        "learner.lora": None if lora is None else lora.model_dump(mode="json"),
        "learner.loss.kind": config.learner.loss.kind,
        "learner.critic": config.learner.critic.model_dump(exclude={"detach"}),
        "env": sorted(table.label for table in config.env),
    }
    for table in config.env:
        # A job's files lie in a copy of the project, in another folder each time.
        file = split_file(table.id)
        found[f"env {table.label!r}: id"] = f"{file[0].name}:{file[1]}" if file else table.id
        found[f"env {table.label!r}: config"] = table.config
    return found


def _shown(value: object) -> str:
    return "not given" if value is None else json.dumps(value)


def split_step(path: Path) -> tuple[Path, int | None]:
    """Split the path that `--resume` names from its step."""
    found = re.fullmatch(r"step_(\d+)", path.name)
    if found is None:
        return path, None
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return run, int(found.group(1))


def _run_and_step(what: str, runs_dir: Path) -> tuple[Path, int | None]:
    path, step = split_step(Path(what))
    if path.name in ("", ".."):
        path = path.resolve()
    if not (path / "config.toml").is_file() and len(path.parts) == 1:
        path = runs_dir / path
    if not (path / "config.toml").is_file():
        raise ConfigError(
            f"--resume: there is no run folder {path}; one is wanted, such as runs/quickstart, or "
            "runs/quickstart/step_20"
        )
    return path, step
