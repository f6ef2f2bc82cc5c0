"""`actor_method`: methods of an actor class, typed on both sides of its handles.

A handle of an `EngineActor` is a `Handle[EngineActor]`. `handle.stage.remote(path, version)` takes the
arguments of the method, and awaiting it gives the method's result; on the object itself the method is a plain
one. Ray has two types of its own for this. `ActorHandle[EngineActor]` accepts any name with any arguments.
What `ray.method` returns makes each default a required argument, and allows no call within the actor.
"""

from collections.abc import Awaitable, Callable
from typing import Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
Me = TypeVar("Me")
Own = TypeVar("Own")
R_co = TypeVar("R_co", covariant=True)

# To the type checker a handle is the class: there the descriptors below are found.
Handle: TypeAlias = type[T]


class RemoteMethod(Protocol[P, R_co]):  # pyright: ignore[reportInvalidTypeVarUse]
    """A method of a handle."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R_co]:
        """Call the method; await its result."""
        ...


class RemotePair(Protocol[P, A, B]):  # pyright: ignore[reportInvalidTypeVarUse]
    """A method of a handle with two results: one can be fetched while the other stays where it is."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> tuple[ObjectRef[A], ObjectRef[B]]:
        """Call the method; await either result."""
        ...


class ActorMethod(Generic[Own, T]):
    """The type of a decorated method: an `Own` on the object, a `T` on a handle."""

    @overload
    def __get__(self, instance: None, owner: type) -> T: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Own: ...
    def __get__(self, instance: object, owner: type) -> T | Own:
        raise NotImplementedError("the decorators return the function itself")


@overload
def actor_method(
    act: Callable[Concatenate[Me, P], Awaitable[A]],
) -> ActorMethod[Callable[P, Awaitable[A]], RemoteMethod[P, A]]: ...
@overload
def actor_method(
    act: Callable[Concatenate[Me, P], A],
) -> ActorMethod[Callable[P, A], RemoteMethod[P, A]]: ...
def actor_method(act: object) -> object:
    """Give handles of the class this method, too."""
    return act


def beside(
    group: str,
) -> Callable[
    [Callable[Concatenate[Me, P], A]],  # pyright: ignore[reportInvalidTypeVarUse]
    ActorMethod[Callable[P, A], RemoteMethod[P, A]],
]:
    """Make an `actor_method` that runs beside calls of other groups (a concurrency group of Ray's)."""

    def decorate(
        act: Callable[Concatenate[Me, P], A],
    ) -> ActorMethod[Callable[P, A], RemoteMethod[P, A]]:
        ray.method(concurrency_group=group)(act)  # pyright: ignore[reportUnknownMemberType]
        return actor_method(act)

    return decorate


def actor_method_pair(
    act: Callable[Concatenate[Me, P], Awaitable[tuple[A, B]]],
) -> ActorMethod[Callable[P, Awaitable[tuple[A, B]]], RemotePair[P, A, B]]:
    """Make an `actor_method` whose two results are separate objects."""
    ray.method(num_returns=2)(act)  # pyright: ignore[reportUnknownMemberType]
    return cast(
        ActorMethod[Callable[P, Awaitable[tuple[A, B]]], RemotePair[P, A, B]], actor_method(act)
    )


def end_actor(actor: Handle[object], *, restart: bool) -> None:
    """Kill an actor's process. restart: Ray may start it anew."""
    handle = cast(ActorHandle[object], actor)
    ray.kill(handle, no_restart=not restart)  # pyright: ignore[reportUnknownMemberType]


def find_actor(kind: type[T], name: str, namespace: str) -> Handle[T]:
    """The handle of a named actor of class `kind`. Raises ValueError where there is none."""
    return cast(
        type[T],
        ray.get_actor(name, namespace),  # pyright: ignore[reportUnknownMemberType]
    )
