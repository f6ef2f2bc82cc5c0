"""The nodes of a run: which there are, what runs where, and whether each can do its part.

Out: the node of each actor, and a sentence for what a node lacks. `rl.fleet.node_watch` says which one is
gone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from envs.registry import BadSettings, UnknownEnv, find_env, settings_of
from reward.registry import UnknownJudge, find_judge
from rl.env_table import EnvTable
from rl.nodes.deadline import in_daemon, within
from rl.nodes.process import first_line

# Between two tries to reach an actor of which Ray does not know yet whether it lives.
AGAIN_SECONDS = 0.5

T = TypeVar("T")


def alive_nodes() -> dict[str, str]:
    """Address of each living node, by its id. Asks Ray's control service, and waits for the answer."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


Answer = Literal["answers", "refuses", "silent"]


async def control_answers(address: str, seconds: float) -> Answer:
    """Try host:port, the address of Ray's control service (GCS).

    "refuses": nobody listens there. "silent": no answer in time, which says little: this process, or the
    machine, may be busy.
    """
    host, _, port = address.rpartition(":")
    try:
        _, writer = await within(asyncio.open_connection(host.strip("[]"), int(port)), seconds)
    except TimeoutError:
        return "silent"
    except OSError:
        return "refuses"
    writer.close()
    return "answers"


def control_address() -> str:
    """host:port of Ray's control service; "" where this process knows none."""
    return ray.get_runtime_context().gcs_address if ray.is_initialized() else ""


def own_node() -> str:
    """The id of the node that this process belongs to."""
    return ray.get_runtime_context().get_node_id()


def own_address() -> str:
    """The address that Ray reaches this process's node at."""
    return ray.util.get_node_ip_address()


async def node_of(actors: Mapping[str, object], seconds: float) -> dict[str, str]:
    """The node of each actor (handles by name). Raises TimeoutError, RayError."""
    asked = [within(ask_node(actor), seconds) for actor in actors.values()]
    return dict(zip(actors, await asyncio.gather(*asked), strict=True))


async def ask_node(actor: object) -> str:
    """The node of an actor, given its handle. Raises RayError."""
    return await cast(_AnyHandle, actor).__ray_call__.remote(_node_of)


def _node_of(actor: object) -> str:
    return own_node()


class _Call(Protocol):
    """Runs a function in an actor's process; every handle has one."""

    def remote(self, act: Callable[[object], T]) -> Awaitable[T]: ...


class _AnyHandle(Protocol):
    __ray_call__: _Call


async def reached(ask: Callable[[], Awaitable[T]]) -> T:
    """Return an actor's answer, as soon as Ray knows whether it is there; one that starts anew is waited for.

    `ask()` must bear being carried out twice: of an actor that cannot be reached nobody knows what it has
    heard. Without a deadline of its own. Raises what else `ask` does.
    """
    while True:
        try:
            return await ask()
        except ActorUnavailableError:
            await asyncio.sleep(AGAIN_SECONDS)


def on_node(node: str, *, or_elsewhere: bool = False) -> NodeAffinitySchedulingStrategy:
    """For what has to run on that node: or not at all, or elsewhere once it is gone."""
    return NodeAffinitySchedulingStrategy(node, soft=or_elsewhere)


async def probe(
    tables: Sequence[EnvTable], folders: Mapping[str, str], seconds: float
) -> list[str]:
    """Find what nodes besides this one lack for the run: a sentence for the first thing on each.

    tables: whose plugins have to be importable. folders: setting -> folder that has to be seen.
    """
    alive = await in_daemon(alive_nodes)
    others = {node: at for node, at in alive.items() if node != own_node()}
    look = ray.remote(num_cpus=0, max_retries=0)(lacks)
    answers = await asyncio.gather(
        *(
            within(
                look.options(scheduling_strategy=on_node(node)).remote(
                    tuple(tables), dict(folders), f"node {at}"
                ),
                seconds,
            )
            for node, at in others.items()
        ),
        return_exceptions=True,
    )
    said: list[str] = []
    for at, answer in zip(others.values(), answers, strict=True):
        if isinstance(answer, TimeoutError):
            said.append(f"node {at}: it did not import the run's plugins within {seconds:g} s")
        elif isinstance(answer, RayError):
            said.append(f"node {at}: it could not be looked at: {first_line(answer)}")
        elif isinstance(answer, BaseException):
            raise answer
        elif answer:
            said.append(answer)
    return said


def lacks(tables: Sequence[EnvTable], folders: Mapping[str, str], here: str) -> str:
    """A sentence for the first thing that is missing where this runs, which it calls `here`; or ""."""
    for table in tables:
        try:
            settings_of(find_env(table.id), table.config)
            for judge in table.judges:
                find_judge(judge)
        except (UnknownEnv, BadSettings, UnknownJudge) as error:
            return f"env {table.label!r}: on {here}: {error}"
    for setting, folder in folders.items():
        if not Path(folder).is_dir():
            return (
                f"{setting}: {here} does not see the folder {folder}, which all nodes have to share"
            )
    return ""
