"""Turns a trajectory's evidence and its judges' findings into one reward."""

import asyncio
import math
import operator
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from envs.chat_model import ModelFault
from envs.containment import closed_from_outside, contain_exits
from envs.dataset import ROW_JUDGES
from envs.deadline import counting
from envs.env import Task
from envs.handover import named_rewards
from envs.text import encodable, shown, told
from reward.registry import GroupJudge, Judge
from rollout.trajectory import Judgement, ScoredTrajectory, Trajectory

T = TypeVar("T")

# The size of a reward at most: a learner adds up squares of it in float32.
LARGEST = 1e15

# For a judge to end in that is over its deadline.
LAST_SECONDS = 1.0


class JudgeFault(Exception):
    """A judge failed or did not answer: the trajectory is not scored, and not scored 0."""


async def score(
    trajectory: Trajectory,
    judges: Sequence[Judge],
    weights: Mapping[str, float],
    *,
    seconds: float,
) -> ScoredTrajectory:
    """Named rewards (the environment's and the judges') and their sum under `weights` (default 1 each).

    Raises JudgeFault. A trajectory that a fault ended has no rewards and the reward 0, which nothing reads.
    """
    if not trajectory.judged:
        return ScoredTrajectory(trajectory, {}, 0.0)
    found: list[Judgement] = []
    for judge in of_row(trajectory.task, judges):
        found.append(await _findings(judge, trajectory, seconds))
        _refuse_twice(_name(judge), found[-1].rewards, trajectory.env_rewards, *found[:-1])
    return summed(trajectory, found, weights)


def summed(
    trajectory: Trajectory, found: Sequence[Judgement], weights: Mapping[str, float]
) -> ScoredTrajectory:
    """The environment's rewards and those of judges, and their weighted sum. Raises JudgeFault."""
    rewards = dict(trajectory.env_rewards)
    for one in found:
        rewards |= one.rewards
    if not rewards:
        raise JudgeFault(
            f"environment {trajectory.env!r} gives no reward of its own, and no judge does: name one "
            '(judges = ["exact"])'
        )
    parts = [turn.rewards for turn in trajectory.turns]
    for one in found:
        for turn, own in enumerate(one.turns):
            parts[turn] = {**parts[turn], **own}
    earned = tuple(_total(one, weights) for one in parts) if any(parts) else ()
    told_more = tuple(one for one in found if one != Judgement(one.rewards))
    return ScoredTrajectory(trajectory, rewards, _total(rewards, weights), earned, told_more)


async def add_group_judge(
    judge: GroupJudge,
    members: Sequence[ScoredTrajectory],
    weights: Mapping[str, float],
    *,
    seconds: float,
) -> list[ScoredTrajectory]:
    """The members of a group with what a judge of whole groups adds to their rewards. Raises JudgeFault.

    Those that a fault ended are not shown to it, and stay as they are.
    """
    judged = [one for one in members if one.trajectory.judged]
    if not judged:
        return list(members)
    shown = [one.trajectory for one in judged]
    found = await _asked(_name(judge), lambda: judge(shown), seconds)
    if not isinstance(found, Sequence) or len(found) != len(judged):
        raise JudgeFault(f"judge {_name(judge)}: it has to return a judgement for each trajectory")
    scored: dict[str, ScoredTrajectory] = {}
    for one, value in zip(judged, cast(Sequence[object], found), strict=True):
        judgement = _judgement(_name(judge), value, len(one.trajectory.turns))
        _refuse_twice(_name(judge), judgement.rewards, one.rewards)
        added = summed(one.trajectory, [judgement], weights)
        scored[one.trajectory.id] = replace(
            one,
            rewards=one.rewards | judgement.rewards,
            reward=one.reward + _total(judgement.rewards, weights),
            turn_rewards=_both(one.turn_rewards, added.turn_rewards),
            judgements=(*one.judgements, *added.judgements),
        )
    return [scored.get(one.trajectory.id, one) for one in members]


def _both(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    if not first or not second:
        return first or second
    return tuple(a + b for a, b in zip(first, second, strict=True))


def _refuse_twice(
    name: str, rewards: Mapping[str, float], *given: Mapping[str, float] | Judgement
) -> None:
    for one in given:
        others = one.rewards if isinstance(one, Judgement) else one
        if twice := sorted(rewards.keys() & others.keys()):
            raise JudgeFault(
                f"judge {name}: its reward {twice[0]!r} is given already, by the environment or "
                "another judge: give it another name"
            )


def of_row(task: Task, judges: Sequence[Judge]) -> Sequence[Judge]:
    """Return the judges that a row of a data set names, by their functions' names; all where it names none.

    Raises JudgeFault for one that there is not.
    """
    named = task.data.get(ROW_JUDGES)
    if not isinstance(named, list):
        return judges
    known = {_name(judge): judge for judge in judges}
    for name in map(str, cast(list[object], named)):
        if name not in known:
            raise JudgeFault(
                f"the row of task {task.id} names the judge {name!r}, and the environment has "
                f"{', '.join(known) or 'none'} (judges)"
            )
    return [judge for name, judge in known.items() if name in named]


async def _findings(judge: Judge, trajectory: Trajectory, seconds: float) -> Judgement:
    """A judge's findings, its rewards as finite floats. Raises JudgeFault, whatever the judge does."""
    name = _name(judge)
    found = await _asked(name, lambda: judge(trajectory.task, trajectory), seconds)
    return _judgement(name, found, len(trajectory.turns))


def _judgement(name: str, found: object, turns: int) -> Judgement:
    """A judge's return value as a record. Raises JudgeFault."""
    try:
        if not isinstance(found, Judgement):
            return Judgement(named_rewards(found, "it"))
        if found.turns and len(found.turns) != turns:
            raise TypeError(
                f"it gives rewards to {len(found.turns)} turns, and the trajectory has {turns}"
            )
        return replace(
            found,
            rewards=named_rewards(found.rewards, "it"),
            metrics=named_rewards(found.metrics, "it"),
            turns=tuple(named_rewards(one, "it") for one in found.turns),
            version=_text(found.version),
            models=_texts(found.models),
            reasons=_texts(found.reasons),
            asked=operator.index(found.asked),
            cached=operator.index(found.cached),
        )
    except TypeError as error:
        raise JudgeFault(f"judge {name}: {told(error)}") from error


def _text(given: object) -> str:
    """A text for the record, whatever a plugin has given as one."""
    return encodable(given) if isinstance(given, str) else shown(given)


def _texts(given: object) -> tuple[str, ...]:
    """Texts for the record; what is no list or tuple of them is one."""
    several = cast(Sequence[object], given) if isinstance(given, list | tuple) else (given,)
    return tuple(map(_text, several))


async def _asked(name: str, begin: Callable[[], Awaitable[T]], seconds: float) -> T:
    """A judge's return value, within its deadline. Raises JudgeFault."""
    deadline = asyncio.timeout(seconds)

    async def ask() -> T | _Raised:
        try:
            async with deadline:
                with counting(deadline):
                    return await begin()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit, say, would end who asked
            if isinstance(error, GeneratorExit) and closed_from_outside(asking):
                raise
            return _Raised(error)

    contain_exits()
    asking, late = asyncio.create_task(ask()), False
    try:
        # A judge that is cancelled at its deadline and will not end is left to itself.
        while not asking.done() and not late:
            expired = deadline.expired()
            await asyncio.wait({asking}, timeout=LAST_SECONDS)
            late = expired and not asking.done()
    finally:  # also where whoever asks is cancelled
        asking.cancel()
    if late or deadline.expired():
        raise JudgeFault(f"judge {name}: no answer within {seconds:g} s")
    if asking.cancelled():
        raise JudgeFault(f"judge {name}: it raised CancelledError")
    found = asking.result()
    if isinstance(found, _Raised):
        said = str(found.error) if isinstance(found.error, ModelFault) else told(found.error)
        raise JudgeFault(f"judge {name}: {said}") from found.error
    return found


@dataclass(frozen=True)
class _Raised:
    """The error that a judge has raised."""

    error: BaseException


def _name(judge: Judge | GroupJudge) -> str:
    return getattr(judge, "__name__", type(judge).__name__)


def _total(rewards: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum, the same in whatever order the rewards were named. Raises JudgeFault."""
    try:
        total = math.fsum(value * weights.get(name, 1.0) for name, value in rewards.items())
    except (OverflowError, ValueError):  # infinite on the way
        total = math.inf
    if not math.isfinite(total):
        raise JudgeFault(f"the weighted sum of the rewards {shown(rewards)} is not finite")
    if abs(total) > LARGEST:
        raise JudgeFault(
            f"the weighted sum of the rewards {shown(rewards)} is {total:g}, and rewards are within "
            f"-{LARGEST:g} and {LARGEST:g}: scale them down"
        )
    return total
