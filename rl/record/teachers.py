"""The teachers of a run (`learner.distill`): checked before anything starts, found once the student is there.

In: the settings, and the folder of the policy that is trained. Out: the settings with a folder in the
published form for every teacher, or a ConfigError of one sentence. A teacher with another tokenizer is
refused: it would score other texts than the student wrote.
"""

from pathlib import Path

from rl.config import RunConfig
from rl.config_error import ConfigError
from rl.record.policy_folder import checkpoint_of, policy_folder
from trainer.checkpoint_folder import MODEL
from trainer.distil_config import SERVED, DistilConfig
from trainer.tokenizer_identity import tokenizer_difference

KEY = "learner.distill"
# What of a policy on the Hub its tokenizer is made of.
_TOKENIZER = ("tokenizer*", "*.model", "vocab*", "merges.txt")


def check_teachers(config: RunConfig, student: Path | None) -> None:
    """Raise ConfigError unless every environment has a teacher that is there and reads the student's tokens.

    student: the folder of the policy, where it is there already.
    """
    distil = config.learner.distill
    if distil is None:
        return
    check_labels(config)
    for what in distil.folders():
        _check_teacher(what, student)
    for name in distil.services():
        _check_service(config, name, student)


def _check_service(config: RunConfig, name: str, student: Path | None) -> None:
    """Raise ConfigError unless a service can be a teacher."""
    what, found = f"{SERVED}{name}", [one for one in config.models if one.name == name]
    if not found:
        raise ConfigError(f"{KEY}: there is no {name!r} among the [[models]]")
    [model] = found
    if model.use != "score":
        raise ConfigError(
            f'{KEY}: {what} is a model of use "{model.use}", and a teacher is one of use "score"'
        )
    if config.sampling.temperature != 1:
        raise ConfigError(
            f"{KEY}: {what} scores at the temperature 1, and the policy writes at "
            f"{config.sampling.temperature:g} (sampling.temperature): leave it at 1, or name a folder"
        )
    if model.path is None:
        return
    if model.serve.max_model_len <= config.episode.max_tokens:
        raise ConfigError(
            f"models.serve.max_model_len of the teacher {name!r} is {model.serve.max_model_len}: it has to "
            f"be above episode.max_tokens ({config.episode.max_tokens})"
        )
    _check_teacher(model.path, student)


def check_labels(config: RunConfig) -> None:
    """Raise ConfigError unless every environment has a teacher, and every label is an environment's."""
    distil = config.learner.distill
    if distil is None:
        return
    labels = [table.label for table in config.env]
    for label in distil.teachers:
        if label not in labels:
            raise ConfigError(
                f"{KEY}.teachers: there is no environment {label!r}; there are {', '.join(labels)}"
            )
    for label in labels:
        if distil.teacher_of(label) is None:
            raise ConfigError(
                f"{KEY}: environment {label!r} has no teacher: name one in teachers, or one of all "
                "environments as teacher"
            )


def _check_teacher(what: str, student: Path | None) -> None:
    try:
        checkpoint = checkpoint_of(what)
    except ConfigError as error:
        raise ConfigError(f"{KEY}: {error}") from None
    folder = Path(what) if checkpoint is None else checkpoint / MODEL
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{KEY}: {folder} has no config.json, so it is no policy's folder")
    try:
        said = tokenizer_difference(folder, folder if student is None else student)
    except ValueError as error:
        raise ConfigError(f"{KEY}: {error}") from None
    if said:
        raise ConfigError(
            f"{KEY}: the teacher {what} has another tokenizer than the policy that is trained ({said}): it "
            "cannot score the policy's tokens; `dorado sft --data` learns from its texts instead"
        )


def with_teachers(config: RunConfig, checkpoint: str) -> RunConfig:
    """The settings with a published folder for each teacher; a run's policy is exported for it.

    checkpoint: the student's folder, or its name on the Hub. Raises ConfigError.
    """
    distil = config.learner.distill
    if distil is None:
        return config
    check_teachers(config, _tokenizer_folder(checkpoint))
    found = {what: str(policy_folder(what).resolve()) for what in distil.folders()}
    found |= {f"{SERVED}{name}": f"{SERVED}{name}" for name in distil.services()}
    there = DistilConfig(
        teacher=None if distil.teacher is None else found[distil.teacher],
        teachers={label: found[what] for label, what in distil.teachers.items()},
        outcome=distil.outcome,
        outcome_weight=distil.outcome_weight,
    )
    learner = config.learner.model_copy(update={"distill": there})
    return config.model_copy(update={"learner": learner})


def _tokenizer_folder(checkpoint: str) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=list(_TOKENIZER)))
    except Exception as error:  # the Hub's errors are of many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"model.hub: {first}") from None
