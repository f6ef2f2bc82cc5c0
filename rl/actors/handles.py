"""Typed handles of a run's actors."""

from dataclasses import dataclass, field
from typing import Any


class StartError(Exception):
    """The run cannot start; the message is one sentence for the user."""


@dataclass
class Actors:
    """Handles of a run's actors; an actor ends when its last handle here is gone.

    ranks: the learner's processes, which `learner` stands for.
    node_of: the node of each, by name. addresses: of the nodes. home: the learner's node, of several ranks
    the first one's. stores: by node, where the actors are on more nodes than this process's.
    """

    learner: Any
    engines: dict[str, Any]
    hosts: dict[str, Any]
    controllers: dict[str, Any]
    ranks: dict[str, Any] = field(default_factory=dict)
    node_of: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    home: str = ""
    stores: dict[str, Any] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, Any]:
        """Every process, by name."""
        return {**self.ranks, **self.engines, **self.controllers, **self.hosts}


def by_node(actors: Actors) -> dict[str, list[str]]:
    """Names of actors by the address of their node."""
    found: dict[str, list[str]] = {}
    for name, node in sorted(actors.node_of.items()):
        found.setdefault(actors.addresses.get(node, node), []).append(name)
    return found
