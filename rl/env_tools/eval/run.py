"""`dorado env eval`: a model plays held-out tasks of one environment, and one watches.

The model is a checkpoint folder, served by a vLLM engine of this command's own, or a name behind an
OpenAI-compatible server. The episode is a run's (`rollout.episode`); the environment runs in this process.
The trajectories go to a folder that `dorado env replay FOLDER/ID` reads.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from envs.env import Task
from envs.message import JsonObject
from envs.process_end import ends_refused
from envs.session import EnvSession
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.env_tools.eval.chat_model import ChatPolicy, ChatServer, request
from rl.env_tools.eval.judges import EvalJudges, judges_of_evaluation
from rl.env_tools.eval.view import EvalView
from rl.loop.evaluation import heldout_tasks
from rl.model_table import ModelTable
from rl.models.http_wire import base_of
from rl.models.server import ServerFailed
from rl.preflight import check_asked_models, check_model_folder, check_rewards, check_tokenizer
from rl.record.run_folder import TrajectoryWriter
from rl.samples.metrics import passed
from rl.tasks.streams import OutOfTasks
from rollout.config import EngineConfig, EpisodeConfig, SamplingConfig
from rollout.engine import EngineFault, Generate, Sampling
from rollout.episode import Episode, Rendering
from rollout.format import FormatName
from rollout.trajectory import ScoredTrajectory

# Where no run's config gives limits. An engine of a CPU machine has room for this many tokens.
MAX_TOKENS = 4096
GREEDY = SamplingConfig(temperature=1.0, top_p=1e-6)
# Who plays one episode: where its turns come from, and how they are written.
Player = tuple[Generate, Rendering]
RUNS = Path("runs")
NO_TOKENS = "none: the server returned text, so there are no token ids and no log-probs"


@dataclass(frozen=True)
class Limits:
    """Limits that an evaluation takes from a run's config."""

    episode: EpisodeConfig
    engine: EngineConfig
    sampling: SamplingConfig
    format: FormatName | None = None


def is_url(model: str) -> bool:
    """True if a server is meant."""
    return model.startswith(("http://", "https://"))


def limits_for(model: str, run: RunConfig | None, temperature: float | None) -> Limits:
    """Those of the run's config, else ones that fit the model. Raises ConfigError."""
    if temperature is not None and temperature < 0:
        raise ConfigError(f"--temperature: {temperature:g} has to be 0 or above")
    if run is not None:
        limits = Limits(run.episode, run.engine, run.sampling, run.model.format)
    else:
        room = MAX_TOKENS if is_url(model) else min(MAX_TOKENS, _positions(Path(model)))
        episode = EpisodeConfig(
            max_turns=32,
            max_completion_tokens=min(512, room),
            max_tokens=room,
            max_seconds=1800,
        )
        limits = Limits(episode, EngineConfig(max_model_len=room), SamplingConfig())
    if temperature == 0:
        return replace(limits, sampling=GREEDY)
    if temperature is not None:
        changed = limits.sampling.model_copy(update={"temperature": temperature})
        return replace(limits, sampling=changed)
    return limits


def _positions(folder: Path) -> int:
    check_model_folder(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(settings.get("max_position_embeddings") or MAX_TOKENS)


@asynccontextmanager
async def local_players(
    folder: str, limits: Limits, seed: int
) -> AsyncIterator[Callable[[], Player]]:
    """Players of a checkpoint folder, on an engine that lives as long as this."""
    from rollout.renderer import Renderer
    from rollout.vllm_engine import VllmEngine

    renderer = Renderer(folder, limits.format)
    engine = VllmEngine("engine-0", folder, limits.engine, limits.sampling, renderer.eos_ids, seed)
    try:
        async with asyncio.timeout(limits.engine.start_seconds):
            await engine.start()

        async def generate(asked: Any) -> Any:
            try:
                async with asyncio.timeout(limits.engine.request_seconds):
                    return await engine.generate(asked)
            except TimeoutError:
                raise EngineFault(
                    f"the engine did not answer within {limits.engine.request_seconds:g} s"
                ) from None

        yield lambda: (generate, renderer)
    finally:
        engine.shutdown()


@asynccontextmanager
async def server_players(
    url: str, served: str, limits: Limits, at_once: int, temperature: float | None
) -> AsyncIterator[Callable[[], Player]]:
    """Players of a model behind a server. served: its name there, "" for the first one it names.

    Raises EngineFault where the server cannot say which models it has.
    """
    base, seconds = base_of(url), limits.engine.request_seconds
    with ThreadPoolExecutor(at_once, thread_name_prefix="dorado-chat") as threads:
        if not served:
            there = await asyncio.get_running_loop().run_in_executor(
                threads, request, f"{base}/models", None, seconds
            )
            names = [one["id"] for one in there.get("data", ())]
            if not names:
                raise EngineFault(f"{base}/models names no model: give one with --served")
            served = names[0]
        wanted = limits.sampling.temperature if temperature is None else temperature
        server = ChatServer(base, served, wanted, seconds, threads)

        def player() -> Player:
            policy = ChatPolicy(server)
            return policy.generate, policy

        yield player


@dataclass(frozen=True)
class Play:
    """One episode to be played. Those of one task are a group."""

    id: str
    group: str
    table: EnvTable
    task: Task


class EvalFolder:
    """Where an evaluation is written: config.toml, trajectories/eval.jsonl, summary.json."""

    def __init__(self, path: Path, tables: Sequence[EnvTable]) -> None:
        self.path = path
        (path / "trajectories").mkdir(parents=True)
        values = {"env": [table.model_dump(mode="json", exclude_none=True) for table in tables]}
        (path / "config.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
        self.writer = TrajectoryWriter(path, "eval")

    def close(self, summary: JsonObject) -> None:
        """Write the end."""
        (self.path / "summary.json").write_text(
            json.dumps(summary, indent=1) + "\n", encoding="utf-8"
        )


async def evaluate(
    players: AbstractAsyncContextManager[Callable[[], Player]],
    plays: Sequence[Play],
    episode: EpisodeConfig,
    *,
    at_once: int,
    notes: dict[str, str],
    folder: EvalFolder,
    view: EvalView,
    sampling: Callable[[EnvTable], Sampling | None],
    models: Sequence[ModelTable] = (),
) -> list[ScoredTrajectory]:
    """Play each once, `at_once` at a time, by players that come and go with it.

    notes: added to those of each trajectory. sampling: how an environment's tokens are drawn, None: as the
    player's are. models: that judges may ask; services of those that they do ask come and go with it, too.
    Raises EngineFault, TimeoutError, ServerFailed.
    """
    room = asyncio.Semaphore(at_once)
    tables = {play.table.label: play.table for play in plays}
    own = {label: asyncio.Semaphore(one.concurrency or at_once) for label, one in tables.items()}

    async def play_one(
        play: Play, player: Callable[[], Player], judges: EvalJudges
    ) -> ScoredTrajectory:
        table = play.table
        async with own[table.label], room:
            generate, rendering = player()
            one = Episode(
                id=play.id,
                group=play.group,
                env=table.label,
                task=play.task,
                session=EnvSession(table.make(), table.deadlines.record),
                generate=generate,
                renderer=rendering,
                config=episode,
                sampling=sampling(table),
            )
            view.begins(one)
            trajectory = await one.run()
            trajectory = replace(trajectory, notes={**trajectory.notes, **notes})
            scored = await judges.score(trajectory, table)
            view.ends(one, scored)
            return scored

    async def play_group(
        group: Sequence[Play], player: Callable[[], Player], judges: EvalJudges
    ) -> list[ScoredTrajectory]:
        members = await asyncio.gather(*(play_one(play, player, judges) for play in group))
        found = await judges.score_group(members, group[0].table)
        for one in found:
            folder.writer.write(one)
        return found

    groups: dict[str, list[Play]] = {}
    for play in plays:
        groups.setdefault(play.group, []).append(play)
    view.stage("starting")
    judging = judges_of_evaluation(list(tables.values()), models, folder.path, view.note)
    async with judging as judges, players as player:
        view.stage("playing")
        played = await asyncio.gather(*(play_group(g, player, judges) for g in groups.values()))
        return [one for members in played for one in members]


@asynccontextmanager
async def players_of(
    model: str, limits: Limits, *, served: str, at_once: int, temperature: float | None, seed: int
) -> AsyncIterator[Callable[[], Player]]:
    """Players of a checkpoint folder, or of a model behind a server."""
    players = (
        server_players(model, served, limits, at_once, temperature)
        if is_url(model)
        else local_players(model, limits, seed)
    )
    async with players as player:
        yield player


def new_path(out: Path | None, name: str) -> Path:
    """The folder to write: `out`, or one that is called after `name` and the time. Raises ConfigError where
    it is there."""
    path = out or RUNS / f"eval-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if path.exists():
        raise ConfigError(f"--out: {path} exists already")
    return path


def notes_on(model: str) -> dict[str, str]:
    """The notes of a trajectory that a model played."""
    return {"model": model, **({"tokens": NO_TOKENS} if is_url(model) else {})}


def summary(played: Sequence[ScoredTrajectory]) -> JsonObject:
    """Faults are no failures: rates are of the judged ones."""
    judged = [one for one in played if one.trajectory.judged]
    full = sum(passed(one.rewards, one.reward) for one in judged)
    faults = [one.trajectory.fault for one in played if not one.trajectory.judged]
    return {
        "episodes": len(played),
        "judged": len(judged),
        "pass_rate": round(full / len(judged), 4) if judged else None,
        "mean_reward": round(sum(o.reward for o in judged) / len(judged), 4) if judged else None,
        "stop_reasons": dict(sorted(Counter(o.trajectory.stop_reason for o in played).items())),
        "first_fault": faults[0] if faults else "",
    }


def _choose_tasks(table: EnvTable, model: str, limits: Limits, tasks: int) -> list[Task]:
    """Return the held-out tasks to play. Raises ConfigError where they cannot be played or judged."""
    if table.make().reward_names == () and not (table.judges or table.judge):
        raise ConfigError(
            f"--judge: environment {table.label!r} gives no reward of its own: name a judge, such as "
            "--judge mathematics, or a run's TOML that does, with --run"
        )
    check_rewards([table])
    if not is_url(model):
        check_tokenizer(Path(model), [table], limits.episode, key="--model", format=limits.format)
    try:
        return heldout_tasks(table, tasks)
    except OutOfTasks as error:
        raise ConfigError(str(error)) from None


@ends_refused()
def evaluate_and_report(
    table: EnvTable,
    model: str,
    limits: Limits,
    *,
    tasks: int,
    at_once: int,
    temperature: float | None,
    served: str,
    out: Path | None,
    seed: int,
    models: Sequence[ModelTable] = (),
) -> bool:
    """Evaluate and print; returns True if any episode could be judged. models: that judges may ask. Raises
    ConfigError before anything has started."""
    check_asked_models([table], models)
    chosen = _choose_tasks(table, model, limits, tasks)
    path = new_path(out, table.label)
    folder = EvalFolder(path, [table])
    plays = [Play(f"eval-{n}", f"eval-{n}", table, task) for n, task in enumerate(chosen)]
    view = EvalView(f"{table.label}, {len(chosen)} held-out tasks, {model}", len(chosen))

    played: list[ScoredTrajectory] = []
    try:
        with view:
            playing = evaluate(
                players_of(
                    model,
                    limits,
                    served=served,
                    at_once=at_once,
                    temperature=temperature,
                    seed=seed,
                ),
                plays,
                limits.episode,
                at_once=at_once,
                notes=notes_on(model),
                folder=folder,
                view=view,
                # A server has its own, but for the temperature.
                sampling=lambda one: None if is_url(model) else one.sampling.over(limits.sampling),
                models=models,
            )
            played = asyncio.run(playing)
    except (EngineFault, TimeoutError, ServerFailed) as error:
        view.note(f"error: {error or 'the engine did not start in time'}")
    finally:
        found = summary(played)
        folder.close(found)
    view.results(found, path)
    return found["judged"] > 0
