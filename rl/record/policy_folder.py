"""The folder of a policy, by what the user wrote for it: a folder, or a run, of which a checkpoint is meant.

A learner's checkpoint is exported once, into `policies/step_N` of its run folder, for whatever needs a folder
in the published form.
"""

from pathlib import Path

from rl.config_file import ConfigError
from rl.record.checkpoint_choice import best_checkpoint, find_checkpoint, read_checkpoint
from trainer.checkpoint_folder import RECORD, CheckpointError

POLICIES = "policies"


def policy_folder(what: str) -> Path:
    """Find, and where it is a run's make, the published folder of a policy.

    what: such a folder, or runs/NAME (its last checkpoint), runs/NAME@best, runs/NAME@STEP, or a folder
    checkpoints/step_N. Raises ConfigError.
    """
    checkpoint = checkpoint_of(what)
    if checkpoint is None:
        return Path(what)
    record = read_checkpoint(checkpoint)
    folder = checkpoint.parent.parent / POLICIES / checkpoint.name
    if not folder.is_dir():
        from trainer.export import export_policy

        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            export_policy(checkpoint, folder, "float32")
        except (CheckpointError, OSError) as error:
            raise ConfigError(
                f"{what}: version {record.version} could not be exported into {folder}: {error}"
            ) from None
    return folder


def checkpoint_of(what: str) -> Path | None:
    """The learner's checkpoint that is meant; None where `what` is a folder in the published form.

    Raises ConfigError.
    """
    run, at, choice = what.rpartition("@")
    if at and not Path(what).exists():
        if not (Path(run) / "checkpoints").is_dir():
            raise ConfigError(f"{what}: {run} is no run folder with checkpoints")
        if choice == "best":
            return best_checkpoint(Path(run))
        if not choice.isdecimal():
            raise ConfigError(f"{what}: after the @ stands best or the number of a step")
        return find_checkpoint(choice, Path(run))
    path = Path(what)
    if (path / "checkpoints").is_dir():
        return find_checkpoint(what, None)
    if (path / RECORD).is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{what}: there is no such folder")
    return None
