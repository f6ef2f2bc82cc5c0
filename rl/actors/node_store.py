"""`NodeStore`: one node's files of weights, in an actor of its own; it fetches files from other nodes'
stores.

A file comes in chunks through Ray's object store, and gets its name when it is whole.
"""

from collections import deque
from pathlib import Path

import ray
from ray import ObjectRef

from rl.actors.actor_method import Handle, actor_method
from rl.nodes.node_folder import claim, empty

CHUNK_BYTES = 16 * 2**20
# Chunks on their way to a node: the next one is read while one is sent and one is written.
AHEAD = 4


class NodeStore:
    """Keeps one node's files of weights; the folder is this process's to remove."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        claim(self.folder)

    @actor_method
    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.folder / name).stat().st_size

    @actor_method
    def read(self, name: str, offset: int) -> bytes:
        """A chunk of a file."""
        with (self.folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)

    @actor_method
    def fetch(self, name: str, source: "Handle[NodeStore]") -> int:
        """Copy a file from another node's store. Returns bytes."""
        partial = self.folder / f"{name}.partial"
        size = ray.get(source.size.remote(name))
        offsets = deque(range(0, size, CHUNK_BYTES))
        coming: deque[ObjectRef[bytes]] = deque()
        try:
            with partial.open("wb") as file:
                while offsets or coming:
                    while offsets and len(coming) < AHEAD:
                        coming.append(source.read.remote(name, offsets.popleft()))
                    file.write(ray.get(coming.popleft()))
            partial.replace(self.folder / name)
        finally:
            partial.unlink(missing_ok=True)
        return size

    @actor_method
    def remove(self, name: str) -> None:
        """Forget a file."""
        (self.folder / name).unlink(missing_ok=True)

    @actor_method
    def clear(self) -> None:
        """Leave nothing on this node."""
        empty(self.folder)
