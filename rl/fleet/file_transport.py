"""`FileTransport`: weights travel as safetensors files, one on each node that loads the version.

The learner writes a version's file in its own node's folder, in memory as a rule. Engines of other nodes read
a copy on their own node (`rl.fleet.replicas`).
"""

from pathlib import Path

from rl.actors.handles import Actors
from rl.fleet.replicas import WeightReplicas
from rollout.vllm_engine import LoadTimes


class FileTransport:
    """Moves weights by files; the only part of the run that knows their paths."""

    def __init__(self, actors: Actors, folder: Path) -> None:
        """folder: in which every node has a folder of its own."""
        self.actors = actors
        self.replicas = WeightReplicas(folder, actors.home, actors.stores)

    async def publish(self, version: int) -> int:
        path = self.replicas.path(version, self.actors.home)
        return await self.actors.learner.publish.remote(version, str(path))

    async def stage(self, engine: str, version: int) -> float:
        path = await self._path(engine, version)
        return await self.actors.engines[engine].stage.remote(path, version)

    async def load(self, engine: str, version: int) -> LoadTimes:
        path = await self._path(engine, version)
        return await self.actors.engines[engine].load.remote(path, version)

    def forget(self, version: int) -> None:
        self.replicas.forget(version)

    async def _path(self, engine: str, version: int) -> str:
        """Where the engine reads the version: on its own node, once the file is there."""
        node = self.actors.node_of.get(engine, self.actors.home)
        return str(await self.replicas.bring(version, node))
