"""Containment of exits: a plugin's `SystemExit` in a task of its own ends that task, and not the event loop.

asyncio hands on `SystemExit` and `KeyboardInterrupt` of a task to whoever runs the loop, so that an
`asyncio.gather` in which one exits would end all episodes of the process, without an answer to any.
"""

import asyncio
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any

from envs.text import told

_Act = Coroutine[Any, Any, Any] | Generator[Any, Any, Any]


class PluginExit(Exception):
    """An exit in a task that a plugin has begun; the message says which."""


def contain_exits() -> None:
    """Let the tasks that begin in this event loop from now on end in `PluginExit` in place of an exit."""
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        loop.set_task_factory(_task)


def _task(
    loop: asyncio.AbstractEventLoop,
    act: _Act,
    **how: Any,
) -> asyncio.Task[Any]:
    return asyncio.Task(_Contained(act), loop=loop, **how)


def closed_from_outside(task: asyncio.Task[Any] | None) -> bool:
    """True where a coroutine of this task is closed while the task itself does not run: a `GeneratorExit` is
    Python's then, and not a plugin's."""
    try:
        return asyncio.current_task() is not task
    except RuntimeError:  # the loop is gone
        return True


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine whose exits are exceptions. An `async def` around it would not do: in a task that is
    cancelled before its first step it would never begin to await."""

    def __init__(self, act: _Act) -> None:
        self.act = act

    def send(self, value: Any) -> Any:
        try:
            return self.act.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise PluginExit(told(error)) from error

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        trace: TracebackType | None = None,
    ) -> Any:
        try:
            return self.act.throw(kind if value is None else value)  # pyright: ignore
        except (SystemExit, KeyboardInterrupt) as error:
            raise PluginExit(told(error)) from error

    def close(self) -> None:
        self.act.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.act.__await__())  # pyright: ignore
