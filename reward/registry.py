"""Finds a judge by entry point (`dorado.rewards`) or as `module:function`.

A judge is `async def judge(task: Task, trajectory: Trajectory) -> dict[str, float]`: named rewards of
a finished trajectory, from the task and the record alone; or a `Judgement`, which says more. Its attribute
`reward_names` may say their names. Judges with settings, or that ask a model, are in `reward.model_judge`.
"""

import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from envs.entry_point import TwoRegister, entry_point, registered
from envs.env import Task
from envs.text import told
from rollout.trajectory import Judgement, Trajectory

GROUP = "dorado.rewards"
# One judgement for each of a group's trajectories, in their order.
GroupJudge = Callable[[Sequence[Trajectory]], Awaitable[Sequence[Judgement]]]
Judge = Callable[[Task, Trajectory], Awaitable[Mapping[str, float] | Judgement]]


class UnknownJudge(ValueError):
    """No judge of that name; the message says which there are."""


def find_judge(name: str) -> Judge:
    """The judge called `name` (entry point) or at `module:function`. Raises UnknownJudge."""
    if ":" in name:
        return _judge(name, _loaded(name, lambda: _at(*name.split(":", 1))))
    try:
        point = entry_point(GROUP, name)
    except TwoRegister as error:
        raise UnknownJudge(f"judge {error}") from None
    if point is None:
        raise UnknownJudge(
            f"judge {name!r} does not exist; installed are {', '.join(registered(GROUP))}; "
            "or give module:function"
        )
    return _judge(name, _loaded(name, point.load))


def names_of(judge: Judge) -> tuple[str, ...] | None:
    """The names of the rewards that a judge gives: its `reward_names`; None where they are not said."""
    if getattr(judge, "__module__", "").startswith("reward."):
        return (getattr(judge, "__name__", ""),)
    return getattr(judge, "reward_names", None)


def _at(module_name: str, attribute: str) -> object:
    return getattr(importlib.import_module(module_name), attribute)


def _loaded(name: str, load: Callable[[], object]) -> object:
    try:
        return load()
    except BaseException as error:  # a plugin can fail in any way, and exit
        raise UnknownJudge(f"judge {name!r} cannot be imported: {told(error)}") from None


def _judge(name: str, found: object) -> Judge:
    if not callable(found):
        raise UnknownJudge(f"judge {name!r} is no function")
    if not any(map(inspect.iscoroutinefunction, (found, type(found).__call__))):
        raise UnknownJudge(f"judge {name!r} is not async: it has to be `async def`")
    return cast(Judge, found)
