"""Heavy thinking on held-out tasks: K answers each, weighed by the policy, against a vote of as many tokens.

`dorado eval --think K`. Each task is played K times, then once as `aggregate` with those answers (without
their thoughts, in a shuffled order), then again and again until the answers for the vote have cost as many
written tokens as the K and the aggregation. Consumes an evaluation's episodes; produces rates with intervals,
each a mean over the same tasks. The policy that answers is the one that aggregates. Refuses an environment
whose episodes end without a text. Tokens that are read are not counted; the aggregation reads K answers.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from rich.table import Table

from envs.aggregate import TEMPLATE, Aggregate, AggregateConfig
from envs.env import Env, Task
from envs.message import JsonObject
from envs.recorded_answers import final_text
from envs.session import EnvFault, HostFault, demonstrate
from reward.mathematics import answer_key
from rl.config import RunConfig
from rl.config_error import ConfigError
from rl.env_table import EnvTable
from rl.env_tools.eval.run import Play, PlayGroup, by_group, tokens_written
from rl.env_tools.eval.view import EvalView
from rl.samples.heldout import bootstrap
from rl.samples.metrics import passed
from rollout.engine import EngineFault
from rollout.trajectory import ScoredTrajectory, Trajectory

# The vote is given at most so many times K answers, however long the aggregation was.
MOST_MORE = 4
ONE, VOTE, EQUAL, HEAVY = "one answer", "vote", "vote, as many tokens", "heavy thinking"


@dataclass(frozen=True)
class Answered:
    """One task: its K episodes, those that the vote got for the aggregation's tokens, and the aggregation."""

    env: str
    answers: tuple[ScoredTrajectory, ...]
    more: tuple[ScoredTrajectory, ...]
    heavy: ScoredTrajectory


@dataclass(frozen=True)
class Way:
    """A way to answer, over the tasks of an environment: its pass rate with a 95 % interval, and what it took
    per task: answers, and tokens written."""

    rate: float
    low: float
    high: float
    answers: float
    tokens: float


@dataclass(frozen=True)
class Comparison:
    """The ways of one environment. gain: heavy thinking's rate minus that of the vote of as many tokens, with
    the interval of the tasks' own differences. left_out: tasks that could not be judged, by `fault`."""

    tasks: int
    left_out: int
    fault: str
    ways: Mapping[str, Way]
    gain: tuple[float, float, float]

    def row(self) -> JsonObject:
        """As summary.json has it."""
        gain = dict(zip(("rate", "low", "high"), self.gain, strict=True))
        ways = {name: asdict(way) for name, way in self.ways.items()}
        return {**asdict(self), "ways": ways, "gain": gain}


def prepared(config: RunConfig, answers: int) -> tuple[RunConfig, dict[str, EnvTable]]:
    """The settings to play by, K episodes of each task, and by label the environments of the aggregations.

    An environment of recorded answers (`aggregate`) makes way for its original, and lends its template.
    Raises ConfigError.
    """
    templates: dict[str, str] = {}
    known: set[str] = set()

    def original(table: EnvTable) -> EnvTable | None:
        env = table.make()
        if isinstance(env, Aggregate):
            own = env.config
            table = table.model_copy(update={"id": own.of, "config": own.config, "name": ""})
            templates[_content(table)] = own.template
            if _content(table) in known:
                return None
        known.add(_content(table))
        return table

    # Those that stand for themselves come first: they have names of their own.
    given = sorted(config.env, key=lambda table: isinstance(table.make(), Aggregate))
    trained, held = (
        tuple(found for table in tables if (found := original(table)) is not None)
        for tables in (given, config.eval.env)
    )
    evaluation = config.eval.model_copy(update={"env": held, "samples_per_task": answers})
    config = config.model_copy(update={"env": trained, "eval": evaluation})
    return config, {
        table.label: thinking_table(table, answers, templates.get(_content(table), TEMPLATE))
        for table in config.all_envs
    }


def _content(table: EnvTable) -> str:
    """Equal for tables of the same environment with the same settings."""
    return json.dumps([table.id, table.config], sort_keys=True, default=str)


def thinking_table(table: EnvTable, answers: int, template: str) -> EnvTable:
    """The environment of the aggregation: the original with `answers` recorded ones. Raises ConfigError."""
    config = {
        "of": table.id,
        "config": table.config,
        "answers": answers,
        "mixed": False,
        "template": template,
    }
    changes = {"id": "envs.aggregate:Aggregate", "name": f"{table.label}-think", "config": config}
    made = table.model_copy(update=changes)
    made.make()
    return made


def check_texts(tables: Sequence[EnvTable], first: Mapping[str, Task]) -> None:
    """Look at environments by a held-out task of each (`first`, by label) and its expert. Raises ConfigError.

    What an environment without an expert ends on is seen when it has been played.
    """
    for table in tables:
        if type(table.make()).play is not Env.play:
            raise ConfigError(
                f"--think: an agent plays environment {table.label!r}, so no answer is a text to aggregate"
            )
        if any(judge.id == "ranking" for judge in table.judge):
            raise ConfigError(
                f"--think: the judge 'ranking' of environment {table.label!r} compares answers with one "
                "another, so the reward of one alone says nothing"
            )
        if table.label not in first:
            continue
        try:
            task = replace(first[table.label], noise=0)
            _, said, _ = asyncio.run(demonstrate(table.make(), task))
        except (EnvFault, HostFault):
            continue
        own = [message for message in said if message.role == "assistant"]
        if own and own[-1].tool_calls:
            raise ConfigError(
                f"--think: environment {table.label!r} ends an episode with a tool call "
                f"({own[-1].tool_calls[0].name}) and not with a text, so there is no answer to aggregate"
            )


def answer_of(trajectory: Trajectory) -> str:
    """The final text, without thoughts; "" where there is none."""
    last = trajectory.turns[-1] if trajectory.turns else None
    return final_text(trajectory.stop_reason, last.text, last.calls) if last else ""


async def think(
    players: AbstractAsyncContextManager[PlayGroup],
    plays: Sequence[Play],
    thinking: Mapping[str, EnvTable],
    view: EvalView,
) -> list[Answered]:
    """Play the tasks; plays: K episodes of each. thinking: the environments of the aggregations, by the label
    of the original. Raises EngineFault, TimeoutError."""
    async with players as play:
        ones = [
            _one(play, group, thinking[group[0].table.label], view) for group in by_group(plays)
        ]
        tasks = [asyncio.create_task(one) for one in ones]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _one(play: PlayGroup, plays: Sequence[Play], table: EnvTable, view: EvalView) -> Answered:
    first, k = plays[0], len(plays)
    answers = await play(plays)
    if any(one.trajectory.turns and not tokens_written(one) for one in answers):
        raise EngineFault(
            "the server does not say how many tokens it wrote (usage.completion_tokens), and --think "
            "compares at equal tokens"
        )
    texts = [text for one in answers if (text := answer_of(one.trajectory))]
    random.Random(first.task.id).shuffle(texts)
    task = replace(_aggregate(table).task(first.task.data, texts), noise=first.task.noise)
    id = f"{first.group}.think"
    [heavy] = await play([Play(id, id, table, task, first.table.label)])
    wanted = tokens_written(heavy) if heavy.trajectory.judged else 0
    more: list[ScoredTrajectory] = []
    while sum(map(tokens_written, _judged(more))) < wanted and len(more) < MOST_MORE * k:
        view.total += 1
        more += await play([replace(first, id=f"{first.group}.{k + len(more)}")])
    return Answered(first.table.label, tuple(answers), tuple(more), heavy)


def _aggregate(table: EnvTable) -> Aggregate:
    return Aggregate(AggregateConfig.model_validate(table.config))


def vote(members: Sequence[ScoredTrajectory], key: Callable[[str], str]) -> float:
    """The chance that an episode with the most frequent answer passes; ties are drawn. 0 where none answered.

    key: equal for answers that say the same.
    """
    texts = [answer_of(one.trajectory) for one in members]
    keys = [key(text) if text else None for text in texts]
    counts = Counter(one for one in keys if one is not None)
    most = max(counts.values(), default=0)
    won = [o for o, k in zip(members, keys, strict=True) if k is not None and counts[k] == most]
    return fmean(_passed(one) for one in won) if won else 0.0


def plain_key(text: str) -> str:
    """Equal for texts that differ in blanks and capitals only."""
    return " ".join(text.split()).casefold()


def compared(table: EnvTable, found: Sequence[Answered]) -> Comparison | None:
    """The ways to answer, over the tasks of this environment that could be judged in each of them; None where
    there are none."""
    mine = [one for one in found if one.env == table.label]
    told = [one for one in mine if one.heavy.trajectory.judged and _judged(one.answers)]
    lost = [s.trajectory.fault for o in mine if o not in told for s in (o.heavy, *o.answers)]
    if not told:
        return None
    key = answer_key if "mathematics" in table.judges else plain_key
    few = [_judged(one.answers) for one in told]
    many = [_judged((*one.answers, *one.more)) for one in told]
    rates = {
        ONE: [fmean(map(_passed, answers)) for answers in few],
        VOTE: [vote(answers, key) for answers in few],
        EQUAL: [vote(answers, key) for answers in many],
        HEAVY: [_passed(one.heavy) for one in told],
    }
    each = [fmean(map(tokens_written, answers)) for answers in few]
    spent = [float(sum(map(tokens_written, answers))) for answers in few]
    costs = {
        ONE: ([1.0] * len(told), each),
        VOTE: ([float(len(answers)) for answers in few], spent),
        EQUAL: (
            [float(len(answers)) for answers in many],
            [float(sum(map(tokens_written, answers))) for answers in many],
        ),
        HEAVY: (
            [len(answers) + 1.0 for answers in few],
            [s + tokens_written(one.heavy) for s, one in zip(spent, told, strict=True)],
        ),
    }
    ways = {
        name: Way(*_rate(values), round(fmean(costs[name][0]), 2), round(fmean(costs[name][1]), 1))
        for name, values in rates.items()
    }
    gain = _rate([h - v for h, v in zip(rates[HEAVY], rates[EQUAL], strict=True)])
    fault = next((text for text in lost if text), "")
    return Comparison(len(told), len(mine) - len(told), fault, ways, gain)


def without_text(found: Sequence[Answered]) -> list[str]:
    """Environments of which no episode ended with a text."""
    texts = Counter[str]()
    for one in found:
        texts[one.env] += sum(bool(answer_of(s.trajectory)) for s in one.answers)
    return [env for env, count in texts.items() if not count]


def _rate(values: Sequence[float]) -> tuple[float, float, float]:
    return (round(fmean(values), 4), *bootstrap([values]))


def _judged(members: Sequence[ScoredTrajectory]) -> list[ScoredTrajectory]:
    return [one for one in members if one.trajectory.judged]


def _passed(one: ScoredTrajectory) -> float:
    return float(passed(one.rewards, one.reward))


def thinking_shown(found: Mapping[str, Comparison]) -> Table:
    """The comparison as a table: a line for each way of each environment, and the difference of two."""
    shown = Table(show_edge=False, pad_edge=False)
    for column in ("environment", "way", "pass rate", "95 %", "answers", "tokens", "tasks"):
        shown.add_column(column)
    for env, one in found.items():
        for name, way in one.ways.items():
            span = f"{way.low:.2f}-{way.high:.2f}"
            cost = (f"{way.answers:.1f}", f"{way.tokens:.0f}", str(one.tasks))
            shown.add_row(env, name, f"{way.rate:.2f}", span, *cost)
        gain, low, high = one.gain
        span = f"{low:+.2f} to {high:+.2f}"
        shown.add_row(env, "its gain over that vote", f"{gain:+.2f}", span, "", "", "")
    return shown
