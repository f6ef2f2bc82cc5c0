"""`dorado eval`: the held-out sets of a run's settings, played outside of the run.

The policy is a checkpoint of a run (its last one, its best, or that of a step), a model folder, or a name
behind an OpenAI-compatible server. Tasks, episodes of each, sampling and environments are those of `[eval]`,
so that the result compares with the run's own evaluations. `rl.env_tools.eval.run` plays the episodes.
"""

import asyncio
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from os.path import isdir, isfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from envs.message import JsonObject
from envs.process_end import ends_refused
from rl.config import RunConfig, load_config
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.env_tools.eval.players import Limits, Player, is_url, players_of
from rl.env_tools.eval.run import (
    RUNS,
    EvalFolder,
    Play,
    PlayGroup,
    new_path,
    notes_on,
    play_all,
    playing,
    refuse_agents,
    summary,
)
from rl.env_tools.eval.think import (
    Answered,
    Comparison,
    check_texts,
    compared,
    prepared,
    think,
    without_text,
)
from rl.env_tools.eval.view import EvalView
from rl.loop.evaluation import heldout_sets
from rl.models.server import ServerFailed
from rl.plugin_check import check_plugins
from rl.preflight.environments import check_rewards
from rl.preflight.models import check_asked_models, check_model_folder
from rl.preflight.settings import resolved
from rl.preflight.tokenizer import check_tokenizer
from rl.record.checkpoint_choice import find_checkpoint, read_checkpoint
from rl.samples.group import GroupReport, GroupSpec, member_report
from rl.samples.heldout import Evaluation, evaluated
from rl.tasks.streams import OutOfTasks
from rollout.config import EngineConfig
from rollout.engine import EngineFault
from rollout.trajectory import ScoredTrajectory
from trainer.checkpoint_folder import CheckpointError


@dataclass(frozen=True)
class Target:
    """A policy to be evaluated. model: a folder or a URL, "" where `checkpoint` has to be exported first.

    name: part of the output folder's. version: the checkpoint's; None of a model.
    """

    name: str
    config: RunConfig
    model: str = ""
    checkpoint: Path | None = None
    version: int | None = None


def find_target(
    what: str, config: Path | None, overrides: Sequence[str] = (), *, best: bool = False
) -> Target:
    """Resolve RUN, RUN@STEP or MODEL; config: in place of the run's own. Raises ConfigError."""
    if what.endswith("@best"):
        what, best = what.removesuffix("@best"), True
    run, step = _run_and_step(what)
    if run is None:
        if best or config is None:
            wrong = (
                "--best goes with a run" if best else "--config: say whose held-out sets to play"
            )
            raise ConfigError(f"{wrong}: {what} is no run folder (with config.toml, checkpoints/)")
        name = what.rstrip("/").rpartition("/")[2] if not is_url(what) else "served"
        return Target(name, load_config(config, overrides), model=what)
    if best and step:
        raise ConfigError(f"--best goes with a run, and {what} names a step")
    settings = load_config(config or run / "config.toml", overrides)
    found = find_checkpoint(step, run) if step else find_checkpoint(str(run), None, best=best)
    version = read_checkpoint(found).version
    return Target(f"{run.name}-step_{version}", settings, checkpoint=found, version=version)


def _run_and_step(what: str) -> tuple[Path | None, str]:
    """The run folder that is meant, if one is, and the step's number or ""."""
    whole, at, step = what.rpartition("@")
    for text, number in ((what, ""), (whole, step)) if at and step.isdecimal() else ((what, ""),):
        for path in (Path(text), RUNS / text):
            # Unlike those of Path, these are False where a folder may not be looked into.
            if isfile(path / "config.toml") and isdir(path / "checkpoints"):
                return path, number
    return None, ""


def plays_of(config: RunConfig) -> list[Play]:
    """The episodes of an evaluation with these settings. Raises ConfigError."""
    try:
        sets = heldout_sets(config)
    except OutOfTasks as error:
        raise ConfigError(str(error)) from None
    plays: list[Play] = []
    numbers = itertools.count()
    for table in config.all_envs:
        for task in sets[table.label]:
            group = f"eval-{next(numbers)}"
            ids = (f"{group}.{index}" for index in range(config.eval.samples_per_task))
            plays += [Play(id, group, table, task) for id in ids]
    return plays


def result(
    plays: Sequence[Play], played: Sequence[ScoredTrajectory], samples: int, version: int | None
) -> Evaluation:
    """The result of what was played, as a run's own evaluation has it."""
    groups: dict[str, list[ScoredTrajectory]] = {}
    for one in played:
        groups.setdefault(one.trajectory.group, []).append(one)
    first = {play.group: play for play in plays}
    reports: list[GroupReport] = []
    for id, members in groups.items():
        spec = GroupSpec(
            id,
            first[id].table.label,
            first[id].task,
            tuple(one.trajectory.id for one in members),
            train=False,
        )
        told = tuple(member_report(one, "", 0) for one in members)
        reports.append(GroupReport(spec, told, (), (), 0.0, 0.0))
    found = evaluated(reports, samples, learner_version=0, served=0)
    # An engine calls what it was started with version 0.
    return replace(found, version=version or 0, last_version=version or 0, lag=0)


@dataclass(frozen=True)
class Outcome:
    """The end of an evaluation. told: as summary.json has it. error: what ended it early, or "". thinking:
    the ways to answer, by environment, where they were compared."""

    found: Evaluation
    told: JsonObject
    folder: Path
    error: str
    thinking: dict[str, Comparison]


@ends_refused()
def evaluate_target(
    target: Target,
    *,
    at_once: int,
    served: str,
    out: Path | None,
    seed: int,
    answers: int = 0,
    console: Console | None = None,
) -> Outcome:
    """Play the held-out sets and write what came of it. Raises ConfigError before anything has started.

    answers: K of heavy thinking (`rl.env_tools.eval.think`), 0 for none.
    """
    config = _checked(target)
    thinking: dict[str, EnvTable] = {}
    if answers:
        config, thinking = prepared(config, answers)
    refuse_agents(config.all_envs, target.model)
    plays, samples = plays_of(config), config.eval.samples_per_task
    if thinking:
        check_texts(config.all_envs, {play.table.label: play.task for play in plays})
    tables = [*config.all_envs, *thinking.values()]
    path = new_path(out, target.name)
    folder = EvalFolder(path, tables)
    shown = target.model or str(target.checkpoint)
    total = len(plays) + (len(plays) // samples if answers else 0)
    view = EvalView(f"{total} held-out episodes, {shown}", total, console)
    played: list[ScoredTrajectory] = []
    thought: list[Answered] = []
    error = ""
    try:
        with view:
            model = target.model or _export(target, path / "model", view)
            one_by_one = playing(
                _players(config, model, served=served, at_once=at_once, seed=seed),
                tables,
                config.episode,
                at_once=at_once,
                notes=notes_on(shown),
                folder=folder,
                view=view,
                sampling=lambda table: config.sampling_of(table, train=False),
                models=config.models,
            )
            played, thought = _play(one_by_one, plays, thinking, view)
    except (EngineFault, TimeoutError, ServerFailed, CheckpointError, OSError) as caught:
        error = str(caught) or "the engine did not start in time"
    finally:
        shutil.rmtree(path / "model", ignore_errors=True)
        found = result(plays, played, samples, target.version)
        told: JsonObject = {**summary(played), **found.row(), "model": shown, "folder": str(path)}
        if target.version is None:
            told |= dict.fromkeys(("version", "last_version", "lag"))
        ways = _compared(config, thought)
        if answers:
            told["think"] = {env: one.row() for env, one in ways.items()}
        try:
            folder.close(told)
        except OSError as caught:
            error = error or f"{path} cannot be written: {caught.strerror}"
    if nothing := without_text(thought):
        error = (
            f"no episode of {', '.join(nothing)} ended with a text of the policy: there was nothing to "
            "aggregate"
        )
    return Outcome(found, told, path, error, ways)


def _players(
    config: RunConfig, model: str, *, served: str, at_once: int, seed: int
) -> AbstractAsyncContextManager[Callable[[], Player]]:
    sampling = config.eval.sampling or config.sampling
    return players_of(
        model,
        Limits(config.episode, _engine(config), config.sampling),
        served=served,
        at_once=at_once,
        temperature=sampling.temperature,
        seed=seed,
    )


def _compared(config: RunConfig, thought: Sequence[Answered]) -> dict[str, Comparison]:
    both = {table.label: compared(table, thought) for table in config.all_envs}
    return {env: one for env, one in both.items() if one is not None}


def _play(
    one_by_one: AbstractAsyncContextManager[PlayGroup],
    plays: Sequence[Play],
    thinking: Mapping[str, EnvTable],
    view: EvalView,
) -> tuple[list[ScoredTrajectory], list[Answered]]:
    """The episodes, and with heavy thinking what else came of each task. Raises EngineFault, TimeoutError."""
    if not thinking:
        return asyncio.run(play_all(one_by_one, plays)), []
    thought = asyncio.run(think(one_by_one, plays, thinking, view))
    return [one for task in thought for one in task.answers], thought


def _checked(target: Target) -> RunConfig:
    """The settings with what environments say of themselves. Raises ConfigError for what cannot work."""
    check_plugins(target.config.all_envs)
    config = resolved(target.config)
    check_rewards(config.env)
    check_rewards(config.eval.env, "eval.env")
    check_asked_models(config.all_envs, config.models)
    if target.model and not is_url(target.model):
        check_model_folder(Path(target.model))
        check_tokenizer(
            Path(target.model),
            config.all_envs,
            config.episode,
            key="MODEL",
            format=config.model.format,
        )
    return config


def _engine(config: RunConfig) -> EngineConfig:
    """The run's, without what only training needs."""
    return config.engine.model_copy(update={"capture_routing": False})


def _export(target: Target, folder: Path, view: EvalView) -> str:
    """Write a checkpoint's policy as a model folder. Raises CheckpointError, OSError."""
    from trainer.export import export_policy

    assert target.checkpoint is not None, "a target is a model or a checkpoint"
    view.stage("exporting the checkpoint")
    export_policy(target.checkpoint, folder, target.config.engine.dtype)
    return str(folder)


def table(found: Evaluation) -> Table:
    """The result per environment."""
    shown = Table(show_edge=False, pad_edge=False)
    at = sorted({k for one in found.rates.values() for k in one.pass_at if k > 1})
    for column in ("environment", "pass rate", "95 %", *(f"pass@{k}" for k in at), "tasks"):
        shown.add_column(column)
    for env, one in found.rates.items():
        more = [f"{one.pass_at[k]:.2f}" if k in one.pass_at else "-" for k in at]
        span = f"{one.low:.2f}-{one.high:.2f}"
        shown.add_row(env, f"{one.pass_rate:.2f}", span, *more, str(one.tasks))
    if found.mean is not None:
        mean, low, high = found.mean
        shown.add_row("mean", f"{mean:.2f}", f"{low:.2f}-{high:.2f}", *["" for _ in at], "")
    return shown
