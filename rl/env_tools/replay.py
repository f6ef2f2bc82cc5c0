"""`dorado env replay`: what a policy wrote, given to the environment again, and where the two episodes part.

A record is named `file.jsonl:id`, or `FOLDER/id` with a run's folder (or an evaluation's). The
environment and its settings come from the folder's config.toml, and the task from the record; so what can
differ is the plugin, which is looked at before as a run looks at its own. Judges by rules judge again what
the environment says now. Those that ask frozen models do so where that is wanted; else, and where they judge
whole groups, their rewards are the record's. A user whom a model played says again what the record has.

Left out: what a policy wrote in a turn that a fault ended; the record has no such turn.
"""

import asyncio
import difflib
import json
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from envs.chat_model import ChatModel
from envs.handover import NamedRewards
from envs.message import JsonObject, Message, ToolSchema
from envs.process_end import ends_refused
from envs.session import EnvFault, EnvSession, HostFault
from envs.user import UserFault
from reward.model_judge import find_model_judge
from reward.registry import UnknownJudge
from reward.score import JudgeFault, add_group_judge, score
from rl.config_file import ConfigError, read_toml
from rl.env_table import EnvTable
from rl.env_tools.eval.judges import judges_of_evaluation
from rl.env_tools.recorded import RecordedUser, judges_again
from rl.model_table import ModelTable
from rl.plugin_check import check_plugins
from rl.preflight.models import check_asked_models
from rollout.episode import with_rewards
from rollout.trajectory import ScoredTrajectory, Trajectory, Turn
from rollout.trajectory_file import NoRecord, read_trajectory


@dataclass(frozen=True)
class Parting:
    """The first thing that is not as it was. turn: its number from 1; 0 is the opening; None the rewards."""

    turn: int | None
    what: str
    diff: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replayed:
    """A record and what came of it now.

    messages: the conversation now, as far as it was played. turns: how many turns of the record were.
    then, now: the rewards, where the episode was played to its end and judged; else empty.
    """

    trajectory: Trajectory
    tools: tuple[ToolSchema, ...]
    messages: tuple[Message, ...]
    turns: int
    parting: Parting | None
    then: dict[str, float]
    now: dict[str, float]


def find_record(what: str) -> tuple[ScoredTrajectory, EnvTable, list[ModelTable]]:
    """The trajectory that is meant, its environment's table, and the frozen models of its run. Raises
    ConfigError."""
    name, colon, id = what.rpartition(":")
    if colon and (name.endswith(".jsonl") or Path(name).is_file()):
        file = Path(name)
        if not file.is_file():
            raise ConfigError(f"{file}: there is no such file")
        found = _scan([file], id)
        folder = file.absolute().parent
        folder = folder.parent if folder.name == "trajectories" else folder
        where = str(file)
    else:
        folder, id = Path(what).parent, Path(what).name
        if not folder.is_dir():
            raise ConfigError(
                f"{what}: there is no folder {folder}; name a trajectory as "
                "file.jsonl:id or runs/NAME/id"
            )
        found, where = _in_folder(folder, id), str(folder)
    if found is None:
        raise ConfigError(f"{where} has no trajectory {id!r}")
    try:
        scored = read_trajectory(found)
    except NoRecord as error:
        raise ConfigError(
            f"{where}: the line of {id!r} is no record of a trajectory: {error}"
        ) from None
    config = folder / "config.toml"
    return scored, _table(config, scored.trajectory.env), _models(config)


def _in_folder(folder: Path, id: str) -> bytes | None:
    """By the run's index, or, where there is none, line by line."""
    index = folder / "trajectories.sqlite"
    if not index.is_file():
        return _scan(sorted((folder / "trajectories").glob("*.jsonl")), id)
    connection = sqlite3.connect(f"file:{index.absolute()}?mode=ro", uri=True)
    try:
        row = connection.execute(
            "select file, offset from trajectories where id = ?", (id,)
        ).fetchone()
    except sqlite3.Error as error:
        raise ConfigError(f"{index}: cannot be read: {error}") from None
    finally:
        connection.close()
    if row is None:
        return None
    with (folder / row[0]).open("rb") as file:
        file.seek(row[1])
        return file.readline()


def _scan(files: Sequence[Path], id: str) -> bytes | None:
    begin = f'{{"id":{json.dumps(id)},'.encode()
    for path in files:
        with path.open("rb") as file:
            for line in file:
                if line.startswith(begin):
                    return line
    return None


def _table(config: Path, label: str) -> EnvTable:
    """The table of that label; an environment without a config.toml is the installed one as it is."""
    if not config.is_file():
        table = EnvTable(id=label)
    else:
        values = read_toml(config)
        evaluated = values.get("eval")
        sections = (values, evaluated if isinstance(evaluated, dict) else {})
        found = [one for section in sections for one in _list(section.get("env"))]
        tables = [_read_table(config, one) for one in found]
        matching = [table for table in tables if table.label == label]
        if not matching:
            known = ", ".join(t.label for t in tables) or "none"
            raise ConfigError(f"{config} has no environment {label!r}; there are {known}")
        table = matching[0]
    return table


def _models(config: Path) -> list[ModelTable]:
    if not config.is_file():
        return []
    try:
        return [ModelTable.model_validate(one) for one in _list(read_toml(config).get("models"))]
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{config}: models: {first['loc']}: {first['msg'].lower()}") from None


def _list(value: object) -> list[JsonObject]:
    return value if isinstance(value, list) else []


def _read_table(config: Path, values: JsonObject) -> EnvTable:
    """As it was then: what this version does not know says nothing of the environment."""
    known = {name: value for name, value in values.items() if name in EnvTable.model_fields}
    try:
        return EnvTable.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{config}: env.{first['loc'][0]}: {first['msg'].lower()}") from None


async def replay(
    scored: ScoredTrajectory,
    table: EnvTable,
    last: int | None = None,
    models: Mapping[str, ChatModel] | None = None,
) -> Replayed:
    """Play the record again, up to turn `last` (from 1) or to its end. models: those that judges ask again;
    None: they do not. Raises ConfigError."""
    t = scored.trajectory
    if last is not None and not 1 <= last <= len(t.turns):
        raise ConfigError(f"--turn: {t.id} has {len(t.turns)} turns, so 1 to {len(t.turns)}")
    user = RecordedUser(t) if table.user else None
    session = EnvSession(table.make(), table.deadlines.record, user)
    try:
        return await _play(session, scored, table, last, models)
    finally:
        try:
            await session.close()
        except (EnvFault, HostFault) as fault:
            print(f"close: {fault}")


async def _play(
    session: EnvSession,
    scored: ScoredTrajectory,
    table: EnvTable,
    last: int | None,
    models: Mapping[str, ChatModel] | None,
) -> Replayed:
    t = scored.trajectory
    played = Replayed(t, (), (), 0, None, {}, {})
    try:
        opening = await session.open(t.task)
    except (EnvFault, HostFault, UserFault) as fault:
        return _ended(played, 0, fault)
    played = replace(played, tools=opening.tools, messages=opening.messages)
    if t.opening and (diff := difference(t.opening, opening.messages)):
        return replace(played, parting=Parting(0, "the opening is another", diff))
    turns: list[Turn] = []
    for number, turn in enumerate(t.turns[:last], 1):
        try:
            now = await _step(session, turn)
        except (EnvFault, HostFault, UserFault) as fault:
            return _ended(played, number, fault)
        said = Message("assistant", turn.text, turn.calls)
        played = replace(played, messages=(*played.messages, said, *now), turns=number)
        turns.append(replace(turn, observations=now))
        if diff := difference(turn.observations, now):
            return replace(
                played,
                parting=Parting(number, f"turn {number}: the environment answers otherwise", diff),
            )
    if last is not None or not t.judged:
        return played
    try:
        env_rewards = await session.score()
    except (EnvFault, HostFault, UserFault) as fault:
        return _ended(played, None, fault)
    return await _judge(played, scored, table, tuple(turns), env_rewards, models)


async def _step(session: EnvSession, turn: Turn) -> tuple[Message, ...]:
    """Return what the environment says to a recorded turn; it never heard of some turns."""
    if turn.finish_reason != "stop" or turn.malformed:
        return turn.observations
    return (await session.step(turn.text, turn.calls)).messages


async def _judge(
    played: Replayed,
    scored: ScoredTrajectory,
    table: EnvTable,
    turns: tuple[Turn, ...],
    env_rewards: NamedRewards,
    models: Mapping[str, ChatModel] | None,
) -> Replayed:
    turns = tuple(with_rewards([replace(t, rewards={}) for t in turns], env_rewards))
    again = replace(scored.trajectory, turns=turns, env_rewards=env_rewards)
    try:
        judges, seconds = judges_again(scored, table, models), table.deadlines.score_seconds
        now = await score(again, judges.each, table.rewards, seconds=seconds)
        for judge in judges.groups:
            [now] = await add_group_judge(judge, [now], table.rewards, seconds=seconds)
    except (JudgeFault, UnknownJudge) as error:
        return replace(played, parting=Parting(None, str(error)))
    then = {**scored.rewards, "reward": scored.reward}
    rewards = {**now.rewards, "reward": now.reward}
    same = then == rewards and scored.turn_rewards == now.turn_rewards
    parting = None if same else Parting(None, "the rewards are others")
    return replace(played, then=then, now=rewards, parting=parting)


def _ended(played: Replayed, turn: int | None, fault: Exception) -> Replayed:
    """The environment failed, or its machine; the same fault as then is no parting."""
    same = str(fault) == played.trajectory.fault
    return replace(played, parting=None if same else Parting(turn, f"it fails now: {fault}"))


def difference(then: Sequence[Message], now: Sequence[Message]) -> tuple[str, ...]:
    """A unified diff of what an environment said, line by line; empty where it is the same."""
    before, after = ([line for m in one for line in lines_of(m)] for one in (then, now))
    return tuple(difflib.unified_diff(before, after, "then", "now", lineterm=""))


def lines_of(message: Message) -> list[str]:
    """A message as it is shown: who speaks, then the text, then the calls."""
    who = f"{message.role} ({message.name})" if message.name else message.role
    first, *others = (message.content or "").split("\n")
    calls = [
        f"  {call.name}({', '.join(f'{k}={json.dumps(v)}' for k, v in call.arguments.items())})"
        for call in message.tool_calls
    ]
    return [f"{who}: {first}".rstrip(), *(f"  {line}" for line in others), *calls]


@ends_refused()
def replay_and_report(what: str, turn: int | None, *, judges: bool = False) -> bool:
    """Print it. judges: those that ask models do so again. Whether the two are the same; raises ConfigError,
    ServerFailed."""
    scored, table, models = find_record(what)
    check_plugins([table], draw=False)
    asking = [one.label for one in table.judge if find_model_judge(one.id).asks]
    if not judges or not asking:
        found = asyncio.run(replay(scored, table, turn))
    else:
        found = asyncio.run(_asked_again(scored, table, turn, models))
    print("\n".join(report(found, turn)))
    if asking and not judges and found.now:
        print(f"not asked again, so as in the record: {', '.join(asking)} (--judges asks them)")
    return found.parting is None


async def _asked_again(
    scored: ScoredTrajectory, table: EnvTable, turn: int | None, models: Sequence[ModelTable]
) -> Replayed:
    """Replay with the models that judges ask, started for the while. Raises ConfigError, ServerFailed."""
    # The user's texts are the record's.
    asking = table.model_copy(update={"user": None})
    check_asked_models([asking], models)
    with tempfile.TemporaryDirectory(prefix="dorado-replay-") as logs:
        async with judges_of_evaluation([asking], models, Path(logs), print) as found:
            return await replay(scored, table, turn, found.models)


def report(found: Replayed, turn: int | None) -> list[str]:
    """Lines to print."""
    t = found.trajectory
    lines = [f"{t.id}: {t.env}, task {t.task.id}, {len(t.turns)} turns, {t.stop_reason}"]
    if t.fault:
        lines.append(f"then it ended with: {t.fault}")
    if turn is not None:
        lines += ["", *(line for message in found.messages for line in lines_of(message)), ""]
        tools = ", ".join(f"{one.name}({', '.join(_arguments(one))})" for one in found.tools)
        lines.append(f"tools: {tools or 'none'}")
    if found.parting is not None:
        lines += [f"parts: {found.parting.what}", *found.parting.diff]
    elif turn is not None:
        lines.append(f"the same up to turn {turn}")
    else:
        lines.append(f"the same in all {found.turns} turns")
    for name in sorted({*found.then, *found.now}):
        lines.append(f"{name}: then {_number(found.then, name)}, now {_number(found.now, name)}")
    if turn is None and not t.judged:
        lines.append(f"no rewards then or now: {t.stop_reason} is not judged")
    return lines


def _arguments(tool: ToolSchema) -> list[str]:
    return list(tool.parameters.get("properties", {}))


def _number(values: dict[str, float], name: str) -> str:
    return f"{values[name]:g}" if name in values else "none"
