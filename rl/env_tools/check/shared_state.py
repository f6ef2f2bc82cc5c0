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
from typing import Literal

from envs.env import Env

Kind = Literal["class", "module", "process"]


class SharedState:
    """Looks at shared values between episodes; `changed` has a sentence for each that was not the same."""

    def __init__(self, env_class: type[Env]) -> None:
        self.classes = [one for one in env_class.__mro__ if one not in Env.__mro__]
        self.changed: list[tuple[Kind, str]] = []
        self._last = dict(self._seen())

    def look(self) -> None:
        """Compare with the last look. What has come since is no change."""
        now = dict(self._seen())
        for what, mark in now.items():
            if self._last.get(what, mark) != mark and what not in self.changed:
                self.changed.append(what)
        self._last = now

    def first(self, kind: Kind) -> str:
        """The first that changed of a kind, in one sentence; "" where none did."""
        return next((sentence for one, sentence in self.changed if one == kind), "")

    def _seen(self) -> Iterator[tuple[tuple[Kind, str], str]]:
        for one in self.classes:
            for name, value in vars(one).items():
                if _is_state(name, value) and (mark := _mark(value)):
                    sentence = (
                        f"{one.__name__}.{name}, an attribute of the class, changes from episode to episode, "
                        f"and all episodes of a process share it: set self.{name} in reset()"
                    )
                    yield ("class", sentence), mark
        for module in {one.__module__ for one in self.classes}:
            for name, value in vars(sys.modules[module]).items():
                if _is_state(name, value) and (mark := _mark(value)):
                    sentence = (
                        f"{name}, a variable of the module, changes from episode to episode, and all "
                        "episodes of a process share it: keep on self what belongs to an episode"
                    )
                    yield ("module", sentence), mark
        yield ("process", _FOLDER), os.getcwd()
        yield ("process", _VARIABLES), str(sorted(os.environ.items()))
        yield ("process", _RANDOM), _mark(random.getstate())


_FOLDER = (
    "the working directory changes from episode to episode, and all episodes of a process share it: leave "
    "it, and give a process that is started its own `cwd`"
)
_VARIABLES = (
    "environment variables change from episode to episode, and all episodes of a process share them: leave "
    "them, and give a process that is started its own `env`"
)
_RANDOM = (
    "the module random's own generator is used, and all episodes of a process share it: take "
    "random.Random(task.id), and keep it on self"
)


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
