"""The choice of a checkpoint for `dorado export`, by folder, run or step."""

import os
from pathlib import Path

from rl.config_file import ConfigError
from rl.record.best_checkpoint import BEST
from trainer.checkpoint_folder import PARTIAL, CheckpointError, Record, latest, read_record, steps

RUNS = Path("runs")


def find_checkpoint(what: str, run: Path | None, *, best: bool = False) -> Path:
    """Find the folder of a checkpoint: `what` is one, a run folder (its last or best), or a step of `run`.

    Without `run`, a step is one of the only run there is in `runs/`. Raises ConfigError.
    """
    if best:
        if what.isdecimal() or not (Path(what) / "checkpoints").is_dir():
            raise ConfigError(
                f"--best goes with a run folder, such as runs/quickstart, not with {what}"
            )
        return best_checkpoint(Path(what))
    if what.isdecimal():
        return _of_step(int(what), run or _only_run())
    path = Path(what)
    if run is not None:
        raise ConfigError(f"--run goes with the number of a step, not with {what}")
    if not (path / "checkpoints").is_dir():
        return path
    found = latest(path / "checkpoints", lambda said: None)
    if found is None:
        raise ConfigError(f"{path} has no whole checkpoint")
    return found


def best_checkpoint(run: Path) -> Path:
    """The checkpoint that `checkpoints/best` points at. Raises ConfigError where there is no such link."""
    link = run / "checkpoints" / BEST
    if not link.is_symlink():
        raise ConfigError(
            f"--best: {run} has no best checkpoint: one is kept where evaluations go on beside training "
            "(eval.every), or with checkpoint_best = true, once a step was evaluated"
        )
    return link.parent / os.readlink(link)


def read_checkpoint(folder: Path) -> Record:
    """Read the record of a checkpoint. Raises ConfigError unless the checkpoint is whole."""
    try:
        return read_record(folder)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None


def _of_step(step: int, run: Path) -> Path:
    folder = run / "checkpoints"
    there = [n for n, path in sorted(steps(folder)) if path.suffix != PARTIAL]
    if step not in there:
        known = ", ".join(map(str, there)) or "none"
        raise ConfigError(f"{run} has no checkpoint of step {step}; there are {known}")
    return folder / f"step_{step}"


def _only_run() -> Path:
    runs = sorted(path.parent for path in RUNS.glob("*/checkpoints"))
    if len(runs) != 1:
        known = ", ".join(map(str, runs)) or "there are none here"
        raise ConfigError(f"--run: say of which run: {known}")
    return runs[0]
