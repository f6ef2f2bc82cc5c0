"""The policy's tokenizer and chat template, held against what the environments speak, before anything starts.

In: a folder with a tokenizer, settings of environments. Out: nothing, or a ConfigError with one sentence.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from envs.dataset import DatasetEnv
from envs.env import Env
from envs.message import Role
from envs.tool import tools_of
from rl.cold_start import ColdStartError, kept_checkpoint, make_tokenizer
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.plugin_check import openings
from rollout.config import EpisodeConfig
from rollout.format import FormatName

if TYPE_CHECKING:
    from rollout.renderer import Renderer

# Openings that are measured.
OPENINGS_CHECKED = 4


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
        check_own_tokenizer(config, folder, "model.init")


def check_own_tokenizer(config: RunConfig, folder: Path, key: str) -> None:
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
