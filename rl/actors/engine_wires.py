"""Turns over a wire: one controller's requests to its engines, by a connection to each (`rl.actors.rpc`).

A turn by a call of a Ray actor costs engine and controller about half a millisecond of CPU each, as much as
the engine takes for several tokens of a small policy. Ray starts engines, carries everything else, and says
what became of one whose connection is lost.
"""

from contextlib import suppress
from functools import partial
from typing import cast

from ray.exceptions import ActorUnavailableError

from rl.actors.actor_method import Handle
from rl.actors.engine import EngineActor
from rl.actors.rpc import PeerLost, RpcClient, address_of
from rl.nodes.deadline import within
from rollout.engine import Completion, Request

# For Ray to say what became of an engine, or where it is.
ASK_SECONDS = 10.0


class EngineWires:
    """Connections to engines, each made at the first turn."""

    def __init__(self, name: str) -> None:
        """name: the controller's."""
        self.name = name
        self.wires: dict[str, RpcClient] = {}

    async def generate(
        self, engine: str, handle: Handle[EngineActor], request: Request
    ) -> Completion:
        """One turn. Raises EngineFault as the engine does, and as Ray's own call does ActorDiedError where it
        died, another RayActorError where it cannot be reached."""
        if engine not in self.wires:
            self.wires[engine] = RpcClient(
                partial(address_of, handle.address, ASK_SECONDS), self.name
            )
        try:
            return cast(Completion, await self.wires[engine].ask("generate", request))
        except PeerLost as lost:
            with suppress(TimeoutError):
                await within(handle.heartbeat.remote(), ASK_SECONDS)
            raise ActorUnavailableError(f"engine {engine}: connection lost: {lost}", None) from None

    def drop(self, engine: str) -> None:
        """End the connection to an engine that is gone, and with it the turns that wait there."""
        if wire := self.wires.pop(engine, None):
            wire.close()
