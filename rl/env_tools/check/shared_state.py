"""Finds what episodes share and change: attributes of classes, variables of modules, the process itself.

Many episodes of an environment run in one process at once. What one of them changes there, the others see.
"""

import hashlib
import inspect
import os
import pickle
import random
import sys
from collections.abc import Iterator
from types import ModuleType

from envs.env import Env


class SharedState:
    """Looks at shared values between episodes; `changed` has a sentence for each that was not the same."""

    def __init__(self, env_class: type[Env]) -> None:
        self.classes = [one for one in env_class.__mro__ if one not in Env.__mro__]
        self.changed: list[str] = []
        self._last = dict(self._seen())

    def look(self) -> None:
        """Compare with the last look. What has come since is no change."""
        now = dict(self._seen())
        for what, mark in now.items():
            if self._last.get(what, mark) != mark and what not in self.changed:
                self.changed.append(what)
        self._last = now

    def own(self) -> str:
        """The first of the environment's own values that changed, in one sentence; "" where none did."""
        return next((one for one in self.changed if one not in _OF_THE_PROCESS.values()), "")

    def of_the_process(self) -> str:
        """The first value of the process that changed, in one sentence; "" where none did."""
        return next((one for one in self.changed if one in _OF_THE_PROCESS.values()), "")

    def _seen(self) -> Iterator[tuple[str, str]]:
        for one in self.classes:
            for name, value in vars(one).items():
                if _is_state(name, value) and (mark := _mark(value)):
                    yield (
                        f"{one.__name__}.{name}, an attribute of the class, changes from episode to episode, "
                        f"and all episodes of a process share it: set self.{name} in reset()",
                        mark,
                    )
        for module in {one.__module__ for one in self.classes}:
            for name, value in vars(sys.modules[module]).items():
                if _is_state(name, value) and (mark := _mark(value)):
                    yield (
                        f"{name}, a variable of the module, changes from episode to episode, and all "
                        "episodes of a process share it: keep on self what belongs to an episode",
                        mark,
                    )
        yield _OF_THE_PROCESS["folder"], os.getcwd()
        yield _OF_THE_PROCESS["variables"], str(sorted(os.environ.items()))
        yield _OF_THE_PROCESS["random"], _mark(random.getstate())


_OF_THE_PROCESS = {
    "folder": "the working directory changes from episode to episode, and all episodes of a process share "
    "it: leave it, and give a process that is started its own `cwd`",
    "variables": "environment variables change from episode to episode, and all episodes of a process share "
    "them: leave them, and give a process that is started its own `env`",
    "random": "the module random's own generator is used, and all episodes of a process share it: take "
    "random.Random(task.id), and keep it on self",
}


def _is_state(name: str, value: object) -> bool:
    """True for what can hold state and is no part of the program."""
    program = (type, ModuleType, staticmethod, classmethod, property)
    return not (
        name.startswith("__")
        or isinstance(value, program)
        or inspect.isroutine(value)
        or callable(value)
    )


def _mark(value: object) -> str:
    """A hash of a value; "" for one that cannot be pickled, such as a connection."""
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # an author's class
        return ""
