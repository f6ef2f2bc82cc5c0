"""`Actors`: the handles of a run's actors, and where each actor is."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ray.exceptions import RayError

from rl.actors.actor_method import Handle, RemoteMethod, end_actor
from rl.actors.controller import ControllerActor
from rl.actors.engine import EngineActor
from rl.actors.env_host import EnvHost
from rl.actors.heartbeat import Heartbeat
from rl.actors.learner import LearnerActor
from rl.actors.learner_ranks import LearnerRanks
from rl.actors.model_client import PREFIX
from rl.actors.model_service import ModelActor
from rl.actors.node_store import NodeStore
from rl.nodes.deadline import within

# For an engine that hangs to end its processes.
END_SECONDS = 5.0


class StartError(Exception):
    """The run cannot start; the message is one sentence for the user."""


@dataclass
class Actors:
    """Handles of a run's actors, by name; an actor ends when its last handle here is gone.

    ranks: the learner's processes, which `learner` stands for. node_of: the id of each actor's node.
    addresses: by node id. home: the node of the learner (of its rank 0). stores: by node id; empty where all
    actors are on this process's node. models: the frozen models, by the names in the settings.
    """

    learner: Handle[LearnerActor] | LearnerRanks
    engines: dict[str, Handle[EngineActor]]
    hosts: dict[str, Handle[EnvHost]]
    controllers: dict[str, Handle[ControllerActor]]
    ranks: dict[str, Handle[LearnerActor]] = field(default_factory=dict[str, Handle[LearnerActor]])
    node_of: dict[str, str] = field(default_factory=dict[str, str])
    addresses: dict[str, str] = field(default_factory=dict[str, str])
    home: str = ""
    stores: dict[str, Handle[NodeStore]] = field(default_factory=dict[str, Handle[NodeStore]])
    models: dict[str, Handle[ModelActor]] = field(default_factory=dict[str, Handle[ModelActor]])

    async def end_engine(self, name: str) -> None:
        """End an engine that hangs, its vLLM included."""
        engine = self.engines[name]
        # Its process ends vLLM's; one that hangs itself can only be killed.
        with suppress(TimeoutError, RayError):
            await within(engine.end.remote(), END_SECONDS)
        end_actor(engine, restart=False)

    @property
    def heartbeats(self) -> Mapping[str, RemoteMethod[[], Heartbeat]]:
        """Every process's `heartbeat`, by name."""
        models = {f"{PREFIX}{name}": actor for name, actor in self.models.items()}
        actors = {**self.ranks, **self.engines, **self.controllers, **self.hosts, **models}
        return {name: actor.heartbeat for name, actor in actors.items()}


def by_node(actors: Actors) -> dict[str, list[str]]:
    """Names of actors by the address of their node."""
    found: dict[str, list[str]] = {}
    for name, node in sorted(actors.node_of.items()):
        found.setdefault(actors.addresses.get(node, node), []).append(name)
    return found
