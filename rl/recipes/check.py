"""Checks every stage of a recipe before the first one starts: what `--dry-run` of each would say."""

from collections.abc import Sequence
from pathlib import Path

from rl.config_error import ConfigError
from rl.preflight.check import check_run
from rl.recipes.config import CommandStage, FuseStage, SftStage
from rl.recipes.plan import Planned
from rl.record.teachers import check_labels


def check_stages(stages: Sequence[Planned]) -> None:
    """Raise ConfigError, with the stage's name, for the first thing that cannot work."""
    made, names = {one.result for one in stages}, {one.stage.name for one in stages}
    for planned in stages:
        try:
            _check(planned, made, names)
        except ConfigError as error:
            raise ConfigError(f"stage {planned.stage.name!r}: {error}") from None


def _check(planned: Planned, made: set[str], names: set[str]) -> None:
    stage, settings = planned.stage, planned.settings
    if isinstance(stage, FuseStage):
        for one in (*stage.models, *([] if stage.base is None else [stage.base])):
            if one not in names and not Path(one.partition("@")[0]).exists():
                raise ConfigError(f"{one} is neither an earlier stage nor a folder")
        return
    if isinstance(stage, CommandStage) or settings is None:
        return
    if isinstance(stage, SftStage):
        for name in stage.data:
            if "/" not in name and not Path(name).exists() and Path(name).suffix:
                raise ConfigError(f"data: the file {name} does not exist")
    check_labels(settings)
    # What a stage before has yet to make cannot be looked at: a policy like it stands in for it.
    changes: dict[str, object] = {}
    if settings.model.path in made:
        if planned.model is None:
            return
        changes["model"] = planned.model
    distil = settings.learner.distill
    if distil is not None and made & set(distil.folders()):
        changes["learner"] = settings.learner.model_copy(update={"distill": None})
    check_run(settings.model_copy(update=changes))
