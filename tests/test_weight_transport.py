"""A second weight transport: one class with four methods, and an entry. The sync and the fleet stay as they
are."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakes import FakePool

from rl.actors.handles import Actors
from rl.fleet.fleet import Fleet
from rl.fleet.transports import TRANSPORTS
from rl.fleet.weight_sync import SyncError, WeightSync
from rl.fleet.weight_transport import WeightTransport
from rollout.scheduler import Backlog, Limits
from rollout.vllm_engine import LoadTimes
from rollout.window import Rules, Window

LIMITS = Limits(batch_groups=2, group_size=1, target=8, engine_limit=99)
IN_PLACE = Rules(live=1, max_staleness=1, in_place=True)


@dataclass
class MemoryTransport:
    """Weights travel as objects of one process: `there` holds the published versions, `serving` who has
    which."""

    actors: Actors
    folder: Path
    there: dict[int, bytes] = field(default_factory=dict)
    ready: dict[str, bytes] = field(default_factory=dict)
    serving: dict[str, bytes] = field(default_factory=dict)

    async def publish(self, version: int) -> int:
        self.there[version] = f"weights of {version}".encode()
        return len(self.there[version])

    async def stage(self, engine: str, version: int) -> float:
        self.ready[engine] = self.there[version]
        return 4.0

    async def load(self, engine: str, version: int) -> LoadTimes:
        staged = self.ready.pop(engine, None)
        self.serving[engine] = staged or self.there[version]
        return LoadTimes(pause_ms=1.0, swap_ms=0.5, staging_ms=0.0 if staged else 4.0)

    def forget(self, version: int) -> None:
        del self.there[version]


class Nothing:
    """No group is in flight or buffered."""

    def backlog(self, window: Window) -> Backlog:
        return Backlog(window, 0, {}, {}, {})

    def evict(self, versions: Sequence[int]) -> None:
        raise AssertionError("nothing is in flight")


def made(tmp_path: Path) -> tuple[Fleet, MemoryTransport]:
    pool = FakePool()
    transport = MemoryTransport(pool, tmp_path)
    return Fleet(pool, WeightSync(pool, transport, 5.0), IN_PLACE, LIMITS, Nothing()), transport


async def test_versions_reach_the_engines_without_a_file_and_are_released(tmp_path):
    fleet, transport = made(tmp_path)
    await fleet.start()
    for version in (1, 2):
        times = await fleet.publish(version, await fleet.sync.snapshot(version))
        said = f"weights of {version}".encode()
        assert transport.serving == dict.fromkeys(("engine-0", "engine-1"), said)
        assert transport.there == {}, "nobody will load it again"
        assert (times.snapshot_ms, times.publication.bytes) == (3.0, len(said))
        assert (times.staging_ms, times.pause_ms) == ((4.0, 4.0), (1.0, 1.0))
    assert list(tmp_path.iterdir()) == []


async def test_what_a_transport_raises_is_a_sentence_of_the_sync(tmp_path):
    fleet, transport = made(tmp_path)
    await fleet.start()

    async def deaf(engine: str, version: int) -> float:
        await asyncio.Event().wait()
        raise AssertionError

    transport.stage = deaf
    fleet.sync.load_seconds = 0.05
    with pytest.raises(
        SyncError,
        match=r"^no engine is left: (engine-\d did not stage version 1 within 0.05 s(; |$)){2}",
    ):
        await fleet.publish(1, 0.0)


@pytest.mark.parametrize("make", [*TRANSPORTS.values(), MemoryTransport])
def test_a_transport_is_made_for_a_runs_actors_and_folder(make, tmp_path):
    transport: WeightTransport = make(FakePool(), tmp_path)
    for method in ("publish", "stage", "load", "forget"):
        assert callable(getattr(transport, method))
