"""`dorado env eval`: a model plays held-out tasks of one environment, and one watches.

The model is a checkpoint folder, served by a vLLM engine of this command's own, or a name behind an
OpenAI-compatible server. The episode is a run's (`rollout.episode`); the environment runs in this process.
The trajectories go to a folder that `dorado env replay FOLDER/ID` reads.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from envs.env import Env, Task
from envs.message import JsonObject
from envs.model_user import ModelUser
from envs.process_end import ends_refused
from envs.session import EnvSession
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.env_tools.eval.chat_model import ChatPolicy
from rl.env_tools.eval.judges import judges_of_evaluation
from rl.env_tools.eval.players import Limits, Player, is_url, players_of
from rl.env_tools.eval.view import EvalView
from rl.loop.evaluation import heldout_tasks
from rl.model_table import ModelTable
from rl.models.server import ServerFailed
from rl.preflight.environments import check_rewards
from rl.preflight.models import check_asked_models, check_model_folder
from rl.preflight.tokenizer import check_tokenizer
from rl.record.run_folder import TrajectoryWriter
from rl.samples.metrics import passed
from rl.tasks.streams import OutOfTasks
from rollout.config import EngineConfig, EpisodeConfig, SamplingConfig
from rollout.engine import EngineFault, Sampling
from rollout.gateway.agent_episode import AgentEpisode, Gate
from rollout.trajectory import ScoredTrajectory

if TYPE_CHECKING:
    from rollout.gateway.server import Gateway

# Where no run's config gives limits. An engine of a CPU machine has room for this many tokens.
MAX_TOKENS = 4096
GREEDY = SamplingConfig(temperature=1.0, top_p=1e-6)
RUNS = Path("runs")
# A note of a trajectory that a server played: how many tokens it says that it wrote.
SERVER_TOKENS = "server_tokens"
NO_TOKENS = "none: the server returned text, so there are no token ids and no log-probs"


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


@dataclass(frozen=True)
class Play:
    """One episode to be played. Those of one task are a group. place: the label of another environment whose
    `concurrency` it counts against; "" for its own."""

    id: str
    group: str
    table: EnvTable
    task: Task
    place: str = ""


class EvalFolder:
    """Where an evaluation is written: config.toml, trajectories/eval.jsonl, summary.json."""

    def __init__(self, path: Path, tables: Sequence[EnvTable]) -> None:
        """Raises ConfigError where it cannot be written."""
        self.path = path
        values = {"env": [table.model_dump(mode="json", exclude_none=True) for table in tables]}
        try:
            (path / "trajectories").mkdir(parents=True)
            (path / "config.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out: {path} cannot be written: {error.strerror}") from None
        self.writer = TrajectoryWriter(path, "eval")

    def close(self, summary: JsonObject) -> None:
        """Write the end."""
        (self.path / "summary.json").write_text(
            json.dumps(summary, indent=1) + "\n", encoding="utf-8"
        )


# Plays the episodes of one task, once there is room for them, and writes them down.
PlayGroup = Callable[[Sequence[Play]], Awaitable[list[ScoredTrajectory]]]


@asynccontextmanager
async def playing(
    players: AbstractAsyncContextManager[Callable[[], Player]],
    tables: Sequence[EnvTable],
    episode: EpisodeConfig,
    *,
    at_once: int,
    notes: dict[str, str],
    folder: EvalFolder,
    view: EvalView,
    sampling: Callable[[EnvTable], Sampling | None],
    models: Sequence[ModelTable] = (),
) -> AsyncIterator[PlayGroup]:
    """Gives what plays episodes of these environments, `at_once` at a time; players come and go with it.

    notes: added to those of each trajectory. sampling: how an environment's tokens are drawn, None: as the
    player's are. models: that judges and users may ask; services of those that are asked come and go too.
    Raises EngineFault, TimeoutError, ServerFailed.
    """
    room = asyncio.Semaphore(at_once)
    own = {table.label: asyncio.Semaphore(table.concurrency or at_once) for table in tables}

    async def play_one(play: Play) -> ScoredTrajectory:
        table = play.table
        async with own[play.place or table.label], room:
            generate, rendering = policy()
            user = table.user
            # The episode is there before its environment asks anything.
            player = user and ModelUser(lambda request: one.ask_user(request), user.record)
            session = EnvSession(table.make(), table.deadlines.record, player)
            one = AgentEpisode(
                id=play.id,
                group=play.group,
                env=table.label,
                task=play.task,
                session=session,
                generate=generate,
                renderer=rendering,
                config=episode,
                sampling=sampling(table),
                user=judges.models[user.model] if user else None,
                user_seconds=user.seconds if user else 0.0,
                gate=gate,
                agent_seconds=table.deadlines.agent_seconds,
            )
            view.begins(one)
            trajectory = await one.run()
            own_notes = {**trajectory.notes, **notes}
            if isinstance(rendering, ChatPolicy) and rendering.written:
                own_notes[SERVER_TOKENS] = str(rendering.written)
            scored = await judges.score(replace(trajectory, notes=own_notes), table)
            view.ends(one, scored)
            return scored

    async def play_group(group: Sequence[Play]) -> list[ScoredTrajectory]:
        members = await asyncio.gather(*map(play_one, group))
        found = await judges.score_group(members, group[0].table)
        for one in found:
            folder.writer.write(one)
        return found

    view.stage("starting")
    judging = judges_of_evaluation(tables, models, folder.path, view.note)
    async with judging as judges, players as policy, _gates() as gate:
        view.stage("playing")
        yield play_group


@asynccontextmanager
async def _gates() -> AsyncIterator[Callable[[], Gate]]:
    """Gives the server that agents ask, made for the first of them."""
    gateways: list[Gateway] = []

    def gate() -> Gate:
        if not gateways:
            from rollout.gateway.server import Gateway  # nothing without agents pays for its import

            gateways.append(Gateway())
        return gateways[0]

    try:
        yield gate
    finally:
        for one in gateways:
            await one.stop()


async def play_all(
    players: AbstractAsyncContextManager[PlayGroup], plays: Sequence[Play]
) -> list[ScoredTrajectory]:
    """Play each once. Raises EngineFault, TimeoutError, ServerFailed."""
    async with players as play_group:
        played = await asyncio.gather(*map(play_group, by_group(plays)))
    return [one for members in played for one in members]


def by_group(plays: Sequence[Play]) -> list[list[Play]]:
    """The episodes of each task."""
    groups: dict[str, list[Play]] = {}
    for play in plays:
        groups.setdefault(play.group, []).append(play)
    return list(groups.values())


def tokens_written(scored: ScoredTrajectory) -> int:
    """Tokens that the policy wrote, by the engine or as a server says; 0 where that says nothing."""
    told = scored.trajectory.notes.get(SERVER_TOKENS, "0")
    return scored.trajectory.num_completion_tokens or int(told)


def refuse_agents(tables: Sequence[EnvTable], model: str) -> None:
    """Raise ConfigError where an agent would play with a server's model: it is served by token ids."""
    for table in tables:
        if is_url(model) and type(table.make()).play is not Env.play:
            raise ConfigError(
                f"env {table.label!r}: an agent plays it, through a gateway that continues token ids, and "
                f"{model} returns text: name a model folder, or a run"
            )


def new_path(out: Path | None, name: str) -> Path:
    """The folder to write: `out`, or one that is called after `name` and the time. Raises ConfigError where
    it is there."""
    path = out or RUNS / f"eval-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if os.path.lexists(path):
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
    refuse_agents([table], model)
    chosen = _choose_tasks(table, model, limits, tasks)
    path = new_path(out, table.label)
    folder = EvalFolder(path, [table])
    plays = [Play(f"eval-{n}", f"eval-{n}", table, task) for n, task in enumerate(chosen)]
    view = EvalView(f"{table.label}, {len(chosen)} held-out tasks, {model}", len(chosen))

    played: list[ScoredTrajectory] = []
    try:
        with view:
            one_by_one = playing(
                players_of(
                    model,
                    limits,
                    served=served,
                    at_once=at_once,
                    temperature=temperature,
                    seed=seed,
                ),
                [table],
                limits.episode,
                at_once=at_once,
                notes=notes_on(model),
                folder=folder,
                view=view,
                # A server has its own, but for the temperature.
                sampling=lambda one: None if is_url(model) else one.sampling.over(limits.sampling),
                models=models,
            )
            played = asyncio.run(play_all(one_by_one, plays))
    except (EngineFault, TimeoutError, ServerFailed) as error:
        view.note(f"error: {error or 'the engine did not start in time'}")
    finally:
        found = summary(played)
        folder.close(found)
    view.results(found, path)
    return found["judged"] > 0
