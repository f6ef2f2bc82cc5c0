"""Models, before anything starts: the policy's folder, frozen models, and the judges and users that ask them.

In: settings, and folders of checkpoints. Out: nothing, or a ConfigError with one sentence. Reads no weights.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from envs.env import Split
from envs.text import told
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.model_table import ModelTable
from rl.models.http_wire import key_of
from rl.models.judges import asked_models, check_first_task, check_judge, check_user
from trainer.checkpoint_files import check_weights, quantized, read_header
from trainer.families.registry import FAMILIES
from trainer.reward_scores import read_scores

# Files of which a tokenizer has one.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def check_models(config: RunConfig) -> None:
    """Frozen models are there as far as this machine can say, and judges and users accept their settings.

    Raises ConfigError.
    """
    _check_tables(list(enumerate(config.models)))
    sections: tuple[tuple[str, Sequence[EnvTable], Split], ...] = (
        ("env", config.env, "train"),
        ("eval.env", config.eval.env, "heldout"),
    )
    for section, tables, split in sections:
        for index, table in enumerate(tables):
            check_user(table, f"{section}.{index}", config.models)
            for number, judge in enumerate(table.judge):
                check_judge(judge, f"{section}.{index}.judge.{number}", config.models)
            check_first_task(table, f"{section}.{index}", split)


def check_asked_models(tables: Sequence[EnvTable], models: Sequence[ModelTable]) -> None:
    """The same for some environments alone, and the models that their judges and users ask. Raises
    ConfigError."""
    asked = asked_models(tables, models)
    _check_tables([(index, one) for index, one in enumerate(models) if one in asked])
    for table in tables:
        check_user(table, f"env {table.label!r}", models)
        for number, judge in enumerate(table.judge):
            check_judge(judge, f"env {table.label!r}: judge.{number}", models)
        check_first_task(table, f"env {table.label!r}", "heldout")


def check_adapters(config: RunConfig) -> None:
    """The policy has the layers that are to have adapters; of a policy on the Hub the learner says so."""
    lora, model = config.learner.lora, config.model
    if lora is None or model.hub is not None:
        return
    family = model.init.family if model.init else ""
    if model.path is not None:
        family = json.loads((Path(model.path) / "config.json").read_text(encoding="utf-8")).get(
            "model_type", ""
        )
    possible = FAMILIES[family].adapter_targets if family in FAMILIES else lora.targets
    for target in lora.targets:
        if target not in possible:
            raise ConfigError(
                f"learner.lora.targets: {family} has no {target} outside its experts, possible are "
                f"{', '.join(possible)}"
            )


def check_model_folder(folder: Path, *, trained: bool = False) -> None:
    """Raise ConfigError unless the folder holds a causal language model with a tokenizer; where it is to be
    `trained`, one with whole weights."""
    from trainer.weights_fit import check_fit

    if not folder.is_dir():
        raise ConfigError(
            f"model.path: the folder {folder} does not exist; "
            f"`dorado model init {folder}` makes a small policy"
        )
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"model.path: {folder} has no config.json, so it is no checkpoint folder")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it holds no JSON object")
        architectures = settings.get("architectures") or ["unknown"]
    except ValueError as error:
        raise ConfigError(f"model.path: {file} is not valid JSON: {error}") from None
    if not architectures[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise ConfigError(
            f"model.path: {folder} holds a {architectures[0]}, not a causal language model"
        )
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(f"model.path: {folder} has no *.safetensors weights")
    try:
        tensors = check_weights(folder, settings)
        check_fit(folder, tensors)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {error}") from None
    if trained and (said := quantized(settings, tensors)):
        raise ConfigError(
            f"model.path: {folder} is quantized ({said}), and a policy is trained with whole weights: take "
            "the checkpoint that it was made from"
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise ConfigError(f"model.path: {folder} has no tokenizer (tokenizer_config.json)")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ConfigError(
            f"model.path: {folder} has no tokenizer: a tokenizer_config.json alone, and none of "
            f"{', '.join(TOKENIZERS)}"
        )


def _check_tables(models: Sequence[tuple[int, ModelTable]]) -> None:
    for index, model in models:
        key = f"models.{index}"
        if model.path is not None:
            try:
                if model.use == "reward":
                    _check_reward_folder(Path(model.path))
                else:
                    check_model_folder(Path(model.path))
            except ConfigError as error:
                raise ConfigError(str(error).replace("model.path", f"{key}.path", 1)) from None
        if model.key_env and not key_of(model.key_env):
            raise ConfigError(
                f"{key}.key_env: the environment variable {model.key_env} is not set; model {model.name!r} "
                "takes its key from it"
            )


def _check_reward_folder(folder: Path) -> None:
    """Raise ConfigError unless the folder holds a reward model, as `dorado reward train` makes them."""
    key = f"model.path: {folder}"
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = read_header(folder / "model.safetensors")
        kind = str(settings["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{key} is no reward model's folder: {told(error)}") from None
    if not kind.endswith("ForSequenceClassification") or "score.weight" not in names:
        raise ConfigError(
            f'{key} holds a {kind}, and use = "reward" needs a reward model: `dorado reward train` makes one'
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ConfigError(f"{key} has no tokenizer")
    try:
        read_scores(folder)
    except ValueError as error:
        raise ConfigError(f"model.path: {error}") from None
