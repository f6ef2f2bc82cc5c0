"""Weight sync: the learner publishes a version, engines load it; its file lives until it is forgotten."""

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rl.cluster import Actors, first_line
from rl.deadline import within


class SyncError(Exception):
    """A version could not be published or loaded; the message is one sentence."""


@dataclass(frozen=True)
class SyncTimes:
    """One weight sync: seconds and bytes written, and per engine how long it paused and loaded (ms)."""

    publish_seconds: float
    bytes: int
    pause_ms: tuple[float, ...]
    transfer_ms: tuple[float, ...]

    def metrics(self) -> dict[str, float]:
        """As a step's metrics; of the engines, the slowest one's figures."""
        return {
            "sync/publish_seconds": self.publish_seconds,
            "sync/megabytes": self.bytes / 1e6,
            "sync/engines": float(len(self.pause_ms)),
            "sync/pause_ms": max(self.pause_ms, default=0.0),
            "sync/transfer_ms": max(self.transfer_ms, default=0.0),
        }


class WeightSync:
    """Publishes into one folder; engines load from it."""

    def __init__(self, actors: Actors, folder: Path, load_seconds: float) -> None:
        self.actors = actors
        self.folder = folder
        self.load_seconds = load_seconds
        self.files: dict[int, Path] = {}

    async def publish(self, version: int) -> SyncTimes:
        """Write the learner's present weights, called `version`. Raises SyncError."""
        start = time.perf_counter()
        path = self.folder / f"version-{version}.safetensors"
        try:
            size = await within(self.actors.learner.publish.remote(str(path)), self.load_seconds)
        except TimeoutError:
            raise SyncError(f"the learner did not publish version {version} in time") from None
        except Exception as error:
            raise SyncError(
                f"the learner could not publish version {version}: {first_line(error)}"
            ) from None
        self.files[version] = path
        return SyncTimes(time.perf_counter() - start, size, (), ())

    async def load(self, versions: Mapping[str, int]) -> SyncTimes:
        """Bring engines (name -> version) to published versions, all at once. Raises SyncError."""
        times = await asyncio.gather(*(self._load(name, v) for name, v in versions.items()))
        return SyncTimes(
            0.0, 0, tuple(t.pause_ms for t in times), tuple(t.transfer_ms for t in times)
        )

    def forget(self, versions: Collection[int]) -> None:
        """Remove the files of these versions."""
        for version in versions:
            self.files.pop(version).unlink(missing_ok=True)

    async def _load(self, name: str, version: int):
        try:
            return await within(
                self.actors.engines[name].load.remote(str(self.files[version]), version),
                self.load_seconds,
            )
        except TimeoutError:
            raise SyncError(
                f"{name} did not load version {version} within {self.load_seconds:g} s"
            ) from None
        except Exception as error:
            raise SyncError(
                f"{name} could not load version {version}: {first_line(error)}"
            ) from None
