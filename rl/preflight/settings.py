"""Settings that environments give, and such as cannot work together.

In: a run's settings. Out: them with what environments say of themselves, or a ConfigError with one sentence.
"""

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from envs.aggregate import Aggregate
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.env_table import DeadlineConfig, EnvTable

# Settings that change the distribution of tokens.
_CUT = {
    "top_p": "at {:g} tokens are drawn from a distribution whose tail is cut off",
    "top_k": "at {0} tokens are drawn from the {0} most likely ones alone",
    "min_p": "at {:g} tokens are drawn from a distribution whose tail is cut off",
    "repetition_penalty": "at {:g} tokens are drawn from a distribution that depends on what was written",
}
# Arguments of vLLM that do, or change the log-probs that are reported of it.
_OF_VLLM = {"logprobs_mode", "logits_processors", "override_generation_config"}


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


def check_settings(config: RunConfig) -> None:
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


def check_engine_arguments(given: Mapping[str, object]) -> None:
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
    for key in sorted(_OF_VLLM & config.engine.vllm.keys()):
        raise ConfigError(
            f"engine.vllm.{key}: changes what tokens are drawn from, or which log-probs the engine reports, "
            "and the learner could not compute the same; leave it out"
        )
