"""Judges with settings, which may ask a frozen model: `[[env.judge]]` names one, and its models.

Such a judge is `async def judge(task, trajectory, model, settings) -> Judgement`, with its settings declared
by `@model_judge(Settings)`; one of whole groups takes `trajectories` in the place of task and trajectory and
returns a judgement for each. A plain `async def judge(task, trajectory, model)` has no settings.

`bound` makes it a judge as any other. Several models, or `votes` of one, are an ensemble: the mean of their
rewards, with their disagreement as a metric.
"""

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any, cast

from pydantic import Field, PositiveInt

from envs.chat_model import ChatAnswer, ChatModel, ChatRequest
from envs.env import EnvConfig, Task
from envs.settings import BadSettings, read_settings
from envs.text import told
from reward.registry import GroupJudge, Judge, UnknownJudge
from rollout.trajectory import Judgement, Trajectory

# The judges that ship.
SHIPPED = {
    "rubric": "reward.judges.rubric:rubric",
    "ranking": "reward.judges.ranking:ranking",
    "equivalence": "reward.judges.equivalence:equivalence",
    "writing": "reward.judges.writing:writing",
    "tool_critic": "reward.judges.tool_critic:tool_critic",
    "principles": "reward.judges.principles:principles",
    "reward_model": "reward.judges.reward_model:reward_model",
}
# Those of them that ask a reward model; all others ask one that writes.
SCORED = frozenset(("reward_model",))
# Of an ensemble's judgements, so many reasons are kept.
MOST_REASONS = 8


class JudgeSettings(EnvConfig):
    """Base of a judge's own settings (the table `[env.judge.config]`).

    votes: judgements of each model, whose mean is the reward. temperature: at which they are drawn.
    max_tokens: of one answer. max_characters: of a text that is shown to a model; the middle of a
    longer one is left out. prompt: a version such as "rubric.v1", or a file; default: the newest that ships.
    """

    votes: PositiveInt = 1
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: PositiveInt = 512
    max_characters: PositiveInt = 12_000
    prompt: str = ""

    def check_task(self, task: Task) -> None:
        """Raise ValueError for a task that has not what this judge needs: the first one is looked at before a
        run starts."""


@dataclass(frozen=True)
class ModelJudge:
    """A judge as it was found, before it has a model. group: it judges whole groups."""

    id: str
    act: Callable[..., Awaitable[Any]]
    settings: type[JudgeSettings] | None
    group: bool
    asks: bool


def model_judge(
    settings: type[JudgeSettings], *, group: bool = False, asks: bool = True
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """Declare a judge's settings. group: it judges whole groups. asks: it needs a model."""

    def declare(act: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        cast(Any, act).declared = (settings, group, asks)
        return act

    return declare


def find_model_judge(id: str) -> ModelJudge:
    """The judge that ships under this name, or at `module:function`. Raises UnknownJudge."""
    place = SHIPPED.get(id, id)
    if ":" not in place:
        raise UnknownJudge(
            f"judge {id!r} does not exist; with a model there are {', '.join(SHIPPED)}; or give "
            "module:function"
        )
    module, attribute = place.split(":", 1)
    try:
        act = getattr(importlib.import_module(module), attribute)
    except BaseException as error:  # a plugin can fail in any way, and exit
        raise UnknownJudge(f"judge {id!r} cannot be imported: {told(error)}") from None
    if not inspect.iscoroutinefunction(act):
        raise UnknownJudge(f"judge {id!r} is not async: it has to be `async def`")
    settings, group, asks = getattr(act, "declared", (None, False, True))
    return ModelJudge(id, act, settings, group, asks)


def check_settings(judge: ModelJudge, config: Mapping[str, object]) -> JudgeSettings | None:
    """The judge's settings; None for one that has none. Raises BadSettings."""
    if judge.settings is None:
        if config:
            raise BadSettings(f"config.{next(iter(config))}: judge {judge.id!r} has no settings")
        return None
    return cast(JudgeSettings, read_settings(judge.settings, dict(config)))


def bound(
    judge: ModelJudge, name: str, models: Sequence[ChatModel], config: Mapping[str, object]
) -> Judge | GroupJudge:
    """The judge with its models, settings and the name of its reward. Raises BadSettings."""
    settings = check_settings(judge, config)
    votes = settings.votes if settings else 1
    asked: list[ChatModel | None] = [None]
    if judge.asks:
        asked = [Vote(model, number) for model in models for number in range(votes)]
    rest = () if settings is None else (settings,)

    async def one(task: Task, trajectory: Trajectory) -> Judgement:
        found = await asyncio.gather(
            *(judge.act(task, trajectory, model, *rest) for model in asked)
        )
        return together(name, [_as_judgement(name, one) for one in found])

    async def whole(trajectories: Sequence[Trajectory]) -> list[Judgement]:
        found = await asyncio.gather(*(judge.act(trajectories, model, *rest) for model in asked))
        return [together(name, list(one)) for one in zip(*found, strict=True)]

    act = whole if judge.group else one
    act.__name__ = name
    return act


class Vote:
    """A model as one voter asks it: equal questions of another vote are other questions."""

    def __init__(self, model: ChatModel, number: int) -> None:
        self.model = model
        self.number = number

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the model's answer. Raises ModelFault."""
        return await self.model.ask(replace(request, number=request.number + 1000 * self.number))


def together(name: str, found: Sequence[Judgement]) -> Judgement:
    """One judgement out of those of an ensemble: the mean, and how far they disagree (standard deviation).

    A judge's own reward, which it calls by its function's name, gets the name in the settings.
    """
    first = found[0]
    own = {key: name if len(first.rewards) == 1 else f"{name}/{key}" for key in first.rewards}
    rewards = {own[key]: fmean(one.rewards[key] for one in found) for key in first.rewards}
    metrics = {
        f"{name}/{key}": fmean(one.metrics[key] for one in found if key in one.metrics)
        for key in dict.fromkeys(key for one in found for key in one.metrics)
    }
    if len(found) > 1:
        main = next(iter(first.rewards))
        metrics[f"{name}/disagreement"] = pstdev([one.rewards[main] for one in found])
    turns = tuple(
        {own[key]: fmean(one.turns[turn].get(key, 0.0) for one in found) for key in parts}
        for turn, parts in enumerate(first.turns)
    )
    return Judgement(
        rewards,
        turns,
        metrics,
        first.version,
        tuple(dict.fromkeys(model for one in found for model in one.models)),
        tuple(reason for one in found for reason in one.reasons)[:MOST_REASONS],
        sum(one.asked for one in found),
        sum(one.cached for one in found),
    )


def _as_judgement(name: str, found: object) -> Judgement:
    return found if isinstance(found, Judgement) else Judgement(cast(dict[str, float], found))
