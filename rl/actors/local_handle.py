"""`local_handle`: a handle of an object in this process, for tests and benchmarks.

A stand-in derives from the actor class that it stands for and overrides the methods that it plays. A method
that the actor class has not, or has with another signature, is refused where the handle is made; the type
checker refuses it, too. So stand-ins and the callers of the real actors cannot drift apart.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import TypeVar, cast

from rl.actors.actor_method import Handle

T = TypeVar("T")


class StandInError(TypeError):
    """A stand-in does not fit its actor class; the message names the method."""


def local_handle(actor: T) -> Handle[T]:
    """A handle that calls the methods of `actor` as tasks of the running event loop. Raises StandInError."""
    check_stand_in(type(actor))
    return cast(type[T], _LocalHandle(actor))


def check_stand_in(kind: type) -> None:
    """Raises StandInError where a public method of a stand-in's class is none of its actor class."""
    real = actor_class(kind)
    stand_ins = kind.__mro__[: kind.__mro__.index(real)]
    for name, method in (item for one in stand_ins for item in vars(one).items()):
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        original = inspect.getattr_static(real, name, None)
        if not inspect.isfunction(original):
            raise StandInError(f"{kind.__name__}.{name}: {real.__name__} has no such method")
        if _parameters(method) != _parameters(original):
            raise StandInError(
                f"{kind.__name__}.{name}{inspect.signature(method)}: {real.__name__} has "
                f"{name}{inspect.signature(original)}"
            )


def actor_class(kind: type) -> type:
    """The actor class that a stand-in's class derives from: the nearest one in `rl.actors`."""
    for one in kind.__mro__:
        if one.__module__.startswith("rl.actors."):
            return one
    raise StandInError(f"{kind.__name__} derives from no class of rl.actors")


def _parameters(method: Callable[..., object]) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


class _LocalHandle:
    """A handle, as it is at run time."""

    def __init__(self, actor: object) -> None:
        self._actor = actor
        self._real = actor_class(type(actor))

    def __getattr__(self, name: str) -> "_LocalMethod":
        original = getattr(self._real, name)
        pair = getattr(original, "__ray_num_returns__", 1) == 2
        return _LocalMethod(getattr(self._actor, name), pair=pair)


class _LocalMethod:
    """A method of a local handle."""

    def __init__(self, act: Callable[..., object], *, pair: bool) -> None:
        self._act = act
        self._pair = pair

    def remote(self, *args: object, **kwargs: object) -> object:
        """Start the call; returns what to await, or two of that."""
        call = asyncio.ensure_future(self._call(*args, **kwargs))
        return (_part(call, 0), _part(call, 1)) if self._pair else call

    async def _call(self, *args: object, **kwargs: object) -> object:
        result = self._act(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result


def _part(call: asyncio.Future[object], index: int) -> asyncio.Future[object]:
    """One of a call's two results. Cancelling the first one cancels the call."""
    part: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def settle(call: asyncio.Future[object]) -> None:
        if part.done():
            return
        if call.cancelled() or (call.exception() is not None and index):
            part.cancel()
        elif (error := call.exception()) is not None:
            part.set_exception(error)
        else:
            part.set_result(cast(tuple[object, ...], call.result())[index])

    call.add_done_callback(settle)
    if not index:
        part.add_done_callback(lambda part: call.cancel() if part.cancelled() else None)
    return part
