"""Replicas of weight files: one of each version on each node that loads it; no node reads another's.

The learner writes the file on its own node. Before the first engine of another node loads a version, that
node's `NodeStore` fetches the file from the learner's, in chunks through Ray's object store, and gives it its
name when it is whole. Where the run's actors are all on this process's node there are no stores.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from rl.actors.actor_method import Handle
from rl.actors.node_store import NodeStore
from rl.nodes.node_folder import node_folder


class WeightReplicas:
    """Tracks which node holds which version's weight file."""

    def __init__(self, folder: Path, home: str, stores: Mapping[str, Handle[NodeStore]]) -> None:
        """folder: in which every node has one of its own. home: the learner's node. stores: by node, the
        learner's and the engines'; none where all are on this node. More may come."""
        self.folder = folder
        self.home = home
        self.stores = stores
        # Per version, what the other nodes that are to have it are doing.
        self.fetches: dict[int, dict[str, asyncio.Task[int]]] = {}

    def path(self, version: int, node: str) -> Path:
        """Where a version lies on a node."""
        return node_folder(self.folder, node) / f"version-{version}.safetensors"

    async def bring(self, version: int, node: str) -> Path:
        """The file of a version that lies at home, on `node`; fetched if it is not there yet.

        Raises RayError where that node or the learner's is gone, OSError.
        """
        path = self.path(version, node)
        if node != self.home:
            fetches = self.fetches.setdefault(version, {})
            if node not in fetches or _failed(fetches[node]):
                fetches[node] = asyncio.create_task(self._fetch(node, path.name))
            # Others may wait for the same one.
            await asyncio.shield(fetches[node])
        return path

    async def _fetch(self, node: str, name: str) -> int:
        return await self.stores[node].fetch.remote(name, self.stores[self.home])

    def forget(self, version: int) -> None:
        """Remove a version's file wherever it is."""
        home = self.path(version, self.home)
        if not self.stores:
            home.unlink(missing_ok=True)
            return
        for node in (self.home, *self.fetches.pop(version, {})):
            # Nobody waits: a node that is gone has nothing to remove.
            self.stores[node].remove.remote(home.name)


def _failed(task: asyncio.Task[int]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
