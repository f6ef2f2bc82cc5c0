"""Finds a judge by entry point (`dorado.rewards`) or as `module:function`.

A judge is `async def judge(task: Task, trajectory: Trajectory) -> dict[str, float]`: named rewards of
a finished trajectory, from the task and the record alone.
"""

import importlib
import inspect
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from typing import cast

from envs.env import Task
from rollout.trajectory import Trajectory

Judge = Callable[[Task, Trajectory], Awaitable[dict[str, float]]]


class UnknownJudge(ValueError):
    """No judge of that name; the message says which there are."""


def find_judge(name: str) -> Judge:
    """The judge called `name` (entry point) or at `module:function`. Raises UnknownJudge."""
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # a plugin can fail in any way
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UnknownJudge(f"judge {name!r} cannot be imported: {reason}") from None
        return _judge(name, found)
    points = {point.name: point for point in entry_points(group="dorado.rewards")}
    if name not in points:
        raise UnknownJudge(
            f"judge {name!r} does not exist; installed are {', '.join(sorted(points))}; "
            "or give module:function"
        )
    return _judge(name, points[name].load())


def _judge(name: str, found: object) -> Judge:
    if not callable(found):
        raise UnknownJudge(f"judge {name!r} is no function")
    if not any(map(inspect.iscoroutinefunction, (found, type(found).__call__))):
        raise UnknownJudge(f"judge {name!r} is not async: it has to be `async def`")
    return cast(Judge, found)
