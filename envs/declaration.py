"""Looks at an environment class for what its author has to declare, before an instance is made.

Out: one sentence for the first mistake. Tools are looked at when the class is made (`envs.tool`).
"""

import difflib
import inspect
from collections.abc import Iterable
from typing import cast

from envs.env import Deadlines, Env, EnvConfig

# What each act of the protocol is given.
_TAKES = {
    "__init__": ("config",),
    "sample": ("rng",),
    "tasks": ("split", "seed"),
    "reset": ("task",),
    "dynamic_tools": (),
    "reply": ("text",),
    "score": (),
    "close": (),
    "expert": ("task",),
    "probe": (),
}
_PLAIN = ("sample", "tasks", "expert", "probe")
_HAVE_TO_BE = {
    "reset": "builds a task's world and returns the first messages: `async def reset(self, task)`",
    "score": "gives the named rewards: `async def score(self)`",
}


def mistake_of(env_class: type[Env]) -> str:
    """The first mistake in one sentence that has the class's name; "" where there is none."""
    wrong = _missing(env_class) or _misshapen(env_class) or _bad_attribute(env_class)
    return f"{env_class.__name__} {wrong}" if wrong else ""


def _missing(env_class: type[Env]) -> str:
    name = getattr(env_class, "name", None)
    if not isinstance(name, str) or not name:
        return 'has no name: write `name = "..."` in the class'
    if env_class.sample is Env.sample and env_class.tasks is Env.tasks:
        return (
            "has neither sample() nor tasks(): write `def sample(self, rng)`, which returns the data of one "
            f"random task as a dict{_meant(env_class, 'sample')}"
        )
    for act, what in _HAVE_TO_BE.items():
        if getattr(env_class, act) is getattr(Env, act):
            return f"has no {act}(), which {what}{_meant(env_class, act)}"
    return ""


def _meant(env_class: type[Env], act: str) -> str:
    own = [name for name, one in vars(env_class).items() if inspect.isfunction(one)]
    close = difflib.get_close_matches(act, own, n=1)
    return f"; {close[0]}() is of no use by that name" if close else ""


def _misshapen(env_class: type[Env]) -> str:
    for act, names in _TAKES.items():
        method = getattr(env_class, act)
        if not inspect.isfunction(method):
            continue
        try:
            inspect.signature(method).bind(None, *names)
        except TypeError:
            return f"has {act}() with other arguments: write `{act}({', '.join(('self', *names))})`"
        if act in _PLAIN and (
            inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
        ):
            return f"has `async def {act}`: it is called without await, so write `def {act}`"
    return ""


def _bad_attribute(env_class: type[Env]) -> str:
    config, span = cast(object, env_class.config_type), cast(object, env_class.reward_range)
    if not (isinstance(config, type) and issubclass(config, EnvConfig)):
        return f"has config_type = {config!r}: it has to be a subclass of EnvConfig"
    count = cast(object, env_class.difficulties)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        return f"has difficulties = {count!r}: it has to be how many there are"
    if count and "difficulty" not in config.model_fields:
        return (
            f"has difficulties = {count}, and no setting for it: give its config_type the field "
            f"`difficulty: int = Field(1, ge=1, le={count})`, or itself `difficulties = 0`"
        )
    if not _is_range(span):
        return f"has reward_range = {span!r}: it has to be the least and the most, such as (0, 1)"
    if not isinstance(cast(object, env_class.deadlines), Deadlines):
        return f"has deadlines = {env_class.deadlines!r}: write Deadlines(tool_seconds=...)"
    return ""


def _is_range(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    ends = list(cast(Iterable[object], value))
    numbers = [one for one in ends if isinstance(one, int | float)]
    return len(numbers) == len(ends) == 2 and numbers[0] < numbers[1]
