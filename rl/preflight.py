"""Checks a configuration against this machine before anything starts.

`check_run` is all that `--dry-run` does after reading the file: environments import and accept their
settings, the policy is there and is a causal language model, the engines fit the machine.
"""

import ast
import asyncio
import difflib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from envs.aggregate import Aggregate
from envs.dataset import DatasetEnv
from envs.declaration import mistake_of
from envs.env import Env, Split, Task
from envs.message import Role
from envs.process_end import ends_refused
from envs.text import told
from envs.tool import tools_of
from reward.answer import check_references, mathematics
from reward.registry import find_judge, names_of
from reward.score import JudgeFault, of_row
from rl.cold_start import ColdStartError, kept_checkpoint, make_tokenizer
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.env_table import DeadlineConfig, EnvTable
from rl.model_table import ModelTable
from rl.models.http_wire import key_of
from rl.models.judges import asked_models, check_first_task, check_judge, check_user
from rl.nodes.address import silent_address
from rl.nodes.cpus import usable_cpus
from rl.objective_check import check_objective
from rl.plugin_check import check_plugins, openings
from rl.record.teachers import check_teachers
from rl.tracker_config import missing
from rollout.config import EpisodeConfig
from rollout.format import FormatName
from trainer.checkpoint_files import check_weights, quantized, read_header
from trainer.families.registry import FAMILIES
from trainer.reward_scores import read_scores

if TYPE_CHECKING:
    from rollout.renderer import Renderer

# Files of which a tokenizer has one.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# Openings that are measured; memory of an actor that does nothing yet.
OPENINGS_CHECKED, ACTOR_MIB = 4, 100
# vLLM's arguments that change the distribution of tokens or the log-probs that are reported of it.
_CUT = {
    "top_p": "at {:g} tokens are drawn from a distribution whose tail is cut off",
    "top_k": "at {0} tokens are drawn from the {0} most likely ones alone",
    "min_p": "at {:g} tokens are drawn from a distribution whose tail is cut off",
    "repetition_penalty": "at {:g} tokens are drawn from a distribution that depends on what was written",
}
OF_DISTRIBUTION = {"logprobs_mode", "logits_processors", "override_generation_config"}


@ends_refused()
def check_run(config: RunConfig) -> None:
    """Raise ConfigError with one sentence for the first thing that cannot work."""
    check_plugins(config.all_envs)
    for table in config.all_envs:
        env = table.make()
        if mistake := mistake_of(type(env)):
            raise ConfigError(f"env {table.label!r}: {mistake}")
        trained = table in config.env
        _check_rows(table, env, ("train", "heldout") if trained else ("heldout",))
    if config.model.path is not None:
        check_policy_folder(Path(config.model.path))
    _check_adapters(config)
    _check_experts(config)
    check_objective(config)
    check_models(config)
    check_rewards(config.env)
    check_rewards(config.eval.env, "eval.env")
    _check_splits(config)
    _check_settings(config)
    _check_engine_arguments(config.engine.vllm)
    for key, sentence in missing(config.trackers, config.notify):
        raise ConfigError(f"{key}: {sentence}")
    _check_writable(Path(config.runs_dir))
    if config.cluster.address == "local":
        _check_machine(config)
    elif why := silent_address(config.cluster.address):
        raise ConfigError(f"cluster.address: {why}")
    if config.model.path is not None:
        folder = Path(config.model.path)
        _check_own_tokenizer(config, folder, "model.path")
    begins = config.model.path or (config.model.init and kept_checkpoint(config))
    check_teachers(config, Path(begins) if begins else None)


def _check_rows(table: EnvTable, env: Env, splits: Sequence[Split]) -> None:
    """The judges of a local file's rows are the table's, and the mathematics judge can read what it is to
    compare with, as far as it looks at the rows."""
    if not isinstance(env, DatasetEnv) or env.config.path is None:
        return
    judges = [find_judge(name) for name in table.judges]
    if mathematics not in judges and not env.config.judges_column:
        return
    try:
        for split in splits:
            compared: list[tuple[str, Task]] = []
            for name, task in env.named_tasks(split):
                try:
                    compared += [(name, task)] * (mathematics in of_row(task, judges))
                except JudgeFault as fault:
                    raise ValueError(f"{name}: {fault}") from None
            asyncio.run(check_references(compared))
    except ValueError as error:
        raise ConfigError(f"env {table.label!r}: {error}") from None


def check_new_tokenizer(config: RunConfig, folder: Path | None = None) -> None:
    """Raise ConfigError where the tokenizer of a new policy (`model.init`) cannot play.

    folder: has it; None: it is made for the look, which takes seconds.
    """
    if config.model.init is None:
        return
    with tempfile.TemporaryDirectory(prefix="dorado-check-") as made:
        if folder is None and (kept := kept_checkpoint(config)) is not None:
            folder = Path(kept)
        if folder is None:
            folder = Path(made)
            try:
                make_tokenizer(config, folder)
            except ColdStartError as error:
                raise ConfigError(str(error)) from None
        _check_own_tokenizer(config, folder, "model.init")


def _check_own_tokenizer(config: RunConfig, folder: Path, key: str) -> None:
    tables, episode = config.all_envs, config.episode
    check_tokenizer(folder, tables, episode, key=key, format=config.model.format, seed=config.seed)


def check_tokenizer(
    folder: Path,
    tables: Sequence[EnvTable],
    episode: EpisodeConfig,
    *,
    key: str,
    format: FormatName | None = None,
    seed: int | None = None,
) -> None:
    """Raise ConfigError unless the folder's tokenizer, if there is one, loads and its chat template plays.

    format: what `model.format` says. seed: of the run whose first openings have to leave room for an answer.
    """
    from rollout.renderer import Renderer

    if not (folder / "tokenizer.json").is_file():
        return
    try:
        renderer = Renderer(folder, format)
        check_rendering(tables, episode, renderer)
        if seed is not None:
            _check_openings(tables, episode, seed, renderer)
    except ConfigError:
        raise
    except Exception as error:  # a tokenizer of others can be broken in any way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{key}: {lines[0]}") from None


def _check_openings(
    tables: Sequence[EnvTable], episode: EpisodeConfig, seed: int, renderer: "Renderer"
) -> None:
    """An environment's openings leave room for an answer, as far as the first ones say."""
    limit = episode.max_tokens
    for table, opened in zip(tables, openings(tables, seed, OPENINGS_CHECKED), strict=True):
        lengths = [len(renderer.prompt(one.messages, one.tools)) for one in opened]
        if lengths and min(lengths) >= limit:
            raise ConfigError(
                f"env {table.label!r}: its openings leave no room for an answer: the shortest of the first "
                f"{len(lengths)} has {min(lengths)} tokens, and episode.max_tokens is {limit}"
            )


def _check_engine_arguments(given: Mapping[str, object]) -> None:
    """Every `engine.vllm.x` is an argument of vLLM's engine, as its source says; nothing is imported."""
    spec = importlib.util.find_spec("vllm") if given else None
    if spec is None or not spec.submodule_search_locations:
        return
    file = Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    try:
        classes = [
            one for one in ast.parse(file.read_text("utf-8")).body if isinstance(one, ast.ClassDef)
        ]
    except (OSError, SyntaxError):
        return
    known = {
        field.target.id
        for one in classes
        if one.name in ("EngineArgs", "AsyncEngineArgs")
        for field in one.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    for name in given:
        if known and name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"engine.vllm.{name}: vLLM's engine has no such argument{hint}")


def check_rendering(
    tables: Sequence[EnvTable], episode: EpisodeConfig, renderer: "Renderer"
) -> None:
    """Raise ValueError unless the policy's chat template can play what the environments speak."""
    from rollout.template_check import check_template

    envs = [table.make() for table in tables]
    asked = [env for env in envs if not isinstance(env, DatasetEnv)]
    roles: set[Role] = set()
    rows = [env.config for env in envs if isinstance(env, DatasetEnv)]
    if asked or any(config.system or config.system_column for config in rows):
        roles.add("system")
    owners = [type(env.tool_owner) for env in envs]
    if any(tools_of(o) or o.dynamic_tools is not Env.dynamic_tools for o in owners):
        roles.add("tool")
    # A question of a data set is answered in one turn.
    turns = episode.max_turns if asked else 1
    check_template(renderer, roles=frozenset(roles), turns=turns)


def check_models(config: RunConfig) -> None:
    """Frozen models are there as far as this machine can say, and judges and users accept their settings.

    Raises ConfigError.
    """
    _check_models(list(enumerate(config.models)))
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
    _check_models([(index, one) for index, one in enumerate(models) if one in asked])
    for table in tables:
        check_user(table, f"env {table.label!r}", models)
        for number, judge in enumerate(table.judge):
            check_judge(judge, f"env {table.label!r}: judge.{number}", models)
        check_first_task(table, f"env {table.label!r}", "heldout")


def _check_models(models: Sequence[tuple[int, ModelTable]]) -> None:
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


def _check_adapters(config: RunConfig) -> None:
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


def _check_experts(config: RunConfig) -> None:
    """A cold start imitates experts; a new policy's tokenizer learns from what they say."""
    if config.sft is None and config.model.init is None:
        return
    section = "[sft]" if config.sft is not None else "model.init"
    for table in config.env:
        if type(table.make()).expert is Env.expert:
            raise ConfigError(
                f"env {table.label!r}: offers no expert, and {section} needs its demonstrations"
            )


def check_rewards(tables: Sequence[EnvTable], key: str = "env") -> None:
    """Something gives each environment a reward, and a weight is that of a reward which is given.

    Raises ConfigError, as far as environments and judges say which rewards they give. key: of the tables.
    """
    for index, table in enumerate(tables):
        own = table.make().reward_names
        judged = [names_of(find_judge(judge)) for judge in table.judges]
        judged += [(judge.label,) for judge in table.judge]
        if own == () and not judged:
            raise ConfigError(
                f"env {table.label!r}: it gives no reward of its own, so a judge has to: judges = "
                '["mathematics"] or ["exact"], say'
            )
        if own is None or None in judged:
            continue
        known = [*own, *(name for names in judged for name in names or ())]
        if twice := [name for name in known if known.count(name) > 1]:
            raise ConfigError(
                f"env {table.label!r}: the reward {twice[0]!r} is given twice, by the environment or its "
                "judges: drop one of them, or give its reward another name"
            )
        if all(table.rewards.get(name) == 0 for name in known):
            raise ConfigError(
                f"{key}.{index}.rewards: every reward of environment {table.label!r} has weight 0 "
                f"({', '.join(known)}), so there is nothing to learn: give one a weight"
            )
        for name in table.rewards:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "drop it, or name the judge"
                raise ConfigError(
                    f"{key}.{index}.rewards.{name}: neither environment {table.label!r} nor a judge gives a "
                    f"reward of this name; given are {', '.join(known)}: {hint}"
                )


def _check_splits(config: RunConfig) -> None:
    """Local data sets have rows in each split that is wanted."""
    for table, env in _data_sets(config):
        if env.config.path is not None:
            _check_tasks(table.label, env, _wanted(config, table))


def _data_sets(config: RunConfig) -> Iterator[tuple[EnvTable, DatasetEnv]]:
    for table in config.all_envs:
        if isinstance(env := table.make(), DatasetEnv):
            yield table, env


def _wanted(config: RunConfig, table: EnvTable) -> list[Split]:
    evaluated = config.eval.before or config.eval.after or config.eval.beside
    train: list[Split] = ["train"] if table in config.env else []
    return [*train, "heldout"] if evaluated else train


def read_later(config: RunConfig) -> list[str]:
    """Say of which environments the check has read no rows, a sentence each."""
    return [
        f"env {table.label!r}: the rows of {env.config.hub} are on the Hugging Face Hub; `dorado train` "
        "reads and checks them when it begins, this check does not"
        for table, env in _data_sets(config)
        if env.config.hub is not None
    ]


def check_hub_rows(config: RunConfig) -> None:
    """Read the data sets on the Hub, which a check does not download, before anything starts.

    Raises ConfigError.
    """
    for table, env in _data_sets(config):
        if env.config.hub is not None:
            _check_tasks(table.label, env, _wanted(config, table))


def _check_tasks(label: str, env: Env, splits: Sequence[Split]) -> None:
    for split in splits:
        try:
            next(env.tasks(split, seed=0))
        except ValueError as error:
            raise ConfigError(f"env {label!r}: {error}") from None


def _check_distribution(config: RunConfig) -> None:
    """Tokens are drawn from the distribution that the learner computes: else every ratio is off."""
    whose = [("sampling", config.sampling.record)]
    whose += [
        (f"env.{index}.sampling", config.sampling_of(table, train=True))
        for index, table in enumerate(config.env)
    ]
    for section, sampling in whose:
        for key, value in sampling.cuts.items():
            raise ConfigError(
                f"{section}.{key}: {_CUT[key].format(value)}, and the learner computes the whole one, so "
                f"that every ratio would be off by what was cut; leave {key} out, or set it in "
                "[eval.sampling], for held-out episodes alone"
            )
        if sampling.temperature != config.sampling.temperature:
            raise ConfigError(
                f"{section}.temperature: {sampling.temperature:g} is not that of [sampling], "
                f"{config.sampling.temperature:g}, with which the learner computes the log-probs of all "
                "environments; leave it out"
            )
    for key in sorted(OF_DISTRIBUTION & config.engine.vllm.keys()):
        raise ConfigError(
            f"engine.vllm.{key}: changes what tokens are drawn from, or which log-probs the engine reports, "
            "and the learner could not compute the same; leave it out"
        )


def _check_settings(config: RunConfig) -> None:
    """Settings that are fine one by one and cannot work together."""
    _check_distribution(config)
    waited = config.episode_seconds - config.episode.max_seconds
    if config.timeouts.stall_seconds <= config.episode_seconds:
        user = f" and the user.seconds of an environment ({waited:g})" if waited else ""
        raise ConfigError(
            f"timeouts.stall_seconds ({config.timeouts.stall_seconds:g}) has to be above "
            f"episode.max_seconds ({config.episode.max_seconds:g}){user}: long episodes are no stall"
        )
    for section, device, gpus in (
        ("engine", config.engine.device, config.engine.gpus),
        ("learner", config.learner.device, config.learner.gpus),
    ):
        if (device == "cuda") != (gpus > 0):
            raise ConfigError(
                f'{section}.gpus: {gpus:g} does not go with {section}.device = "{device}"'
            )


def _check_writable(runs_dir: Path) -> None:
    there = next(p for p in (runs_dir.absolute(), *runs_dir.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"runs_dir: {runs_dir} cannot be written to")


def resolved(config: RunConfig) -> RunConfig:
    """The settings with what environments say of themselves. Raises ConfigError."""
    for table in config.all_envs:
        if isinstance(env := table.make(), Aggregate) and not env.config.record:
            raise ConfigError(
                f"env {table.label!r}: config.record has to name the answers of a run or an evaluation, such "
                'as record = "runs/thinkers"'
            )
    evaluated = tuple(map(with_own_deadlines, config.eval.env))
    return config.model_copy(
        update={
            "env": tuple(map(with_own_deadlines, config.env)),
            "eval": config.eval.model_copy(update={"env": evaluated}),
        }
    )


def own_settings(config: RunConfig) -> dict[str, str]:
    """Keys whose values `resolved` takes from an environment, with which."""
    return {
        f"{key}.{index}.deadlines.{name}": f"environment {table.label}"
        for key, tables in (("env", config.env), ("eval.env", config.eval.env))
        for index, table in enumerate(tables)
        for name in DeadlineConfig.model_fields
        if name not in table.deadlines.model_fields_set
    }


def with_own_deadlines(table: EnvTable) -> EnvTable:
    """The environment's own deadlines, where the table gives none. Raises ConfigError."""
    own = asdict(table.make().deadlines)
    given = table.deadlines.model_dump(exclude_unset=True)
    return table.model_copy(update={"deadlines": DeadlineConfig(**{**own, **given})})


def check_model_folder(folder: Path) -> None:
    """Raise ConfigError unless the folder holds a causal language model with a tokenizer."""
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
        shapes = check_weights(folder, settings)
        check_fit(folder, shapes)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {error}") from None
    if not (folder / "tokenizer_config.json").is_file():
        raise ConfigError(f"model.path: {folder} has no tokenizer (tokenizer_config.json)")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ConfigError(
            f"model.path: {folder} has no tokenizer: a tokenizer_config.json alone, and none of "
            f"{', '.join(TOKENIZERS)}"
        )


def check_policy_folder(folder: Path) -> None:
    """The same of a policy that is to be trained."""
    check_model_folder(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if said := quantized(folder, settings):
        raise ConfigError(
            f"model.path: {folder} is quantized ({said}), and a policy is trained with whole weights: take "
            "the checkpoint that it was made from"
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


def _check_machine(config: RunConfig) -> None:
    learner = config.learner
    rollout, room = config.rollout, psutil.virtual_memory().total
    for key, count in (("hosts", rollout.hosts), ("controllers", rollout.controllers)):
        if count * ACTOR_MIB * 2**20 > room:
            raise ConfigError(
                f"rollout.{key}: {count} processes of at least {ACTOR_MIB} MiB do not fit the memory of this "
                f"machine, {room / 2**30:.0f} GiB"
            )
    wanted = config.asked("CPU")
    if wanted > usable_cpus():
        raise ConfigError(
            f"engine.count: {config.engine.count} engines of {config.engine.cpus:g} CPU and a learner "
            f"of {learner.ranks * learner.cpus:g} ask for {wanted:g} CPUs, this machine has {usable_cpus()}"
        )
    if config.engine.device == "cuda" or learner.device == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        needed = config.asked("GPU")
        if needed > gpus:
            raise ConfigError(
                f"engine.gpus: engines and learner ask for {needed:g} GPUs, this machine has {gpus}"
            )
    if not Path(config.cluster.weights_dir).is_dir():
        raise ConfigError(
            f"cluster.weights_dir: the folder {config.cluster.weights_dir} does not exist"
        )
