"""Weights on several nodes: each has a file of its own, fetched once, and nothing is left of it."""

import os
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import FakePool
from ray.exceptions import ActorDiedError, ActorUnavailableError

from rl.actors.local_handle import local_handle
from rl.actors.node_store import CHUNK_BYTES, NodeStore
from rl.fleet.file_transport import FileTransport
from rl.fleet.weight_sync import SyncError, WeightSync
from rl.nodes.local_ray import start_local_ray
from rl.nodes.node_folder import empty, node_folder


class FakeStore(NodeStore):
    """A node's store, reached as an actor is; `fails` is what its next fetches raise."""

    def __init__(self, folder: Path, fails: tuple[Exception, ...] = ()) -> None:
        super().__init__(str(folder))
        self.fails = list(fails)
        self.fetched: list[str] = []

    async def fetch(self, name: str, source: Any) -> int:
        self.fetched.append(name)
        if self.fails:
            raise self.fails.pop(0)
        chunk = await source.read.remote(name, 0)
        (self.folder / name).write_bytes(chunk)
        return len(chunk)


def two_nodes(
    tmp_path: Path, **fails: tuple[Exception, ...]
) -> tuple[FakePool, dict[str, FakeStore]]:
    """The learner and engine-0 on node a, engine-1 on node b, whose engines say where they read."""
    pool = FakePool()
    pool.node_of = {"learner": "a", "engine-0": "a", "engine-1": "b"}
    stores = {node: FakeStore(node_folder(tmp_path, node), fails.get(node, ())) for node in "ab"}
    pool.home, pool.stores = "a", {node: local_handle(store) for node, store in stores.items()}
    return pool, stores


async def test_an_engine_of_another_node_reads_a_file_of_its_own_node(tmp_path):
    pool, stores = two_nodes(tmp_path)
    sync = WeightSync(pool, FileTransport(pool, tmp_path), 5.0)
    await sync.snapshot(3)
    await sync.publish(3)
    assert not list((tmp_path / "b").iterdir()), "nobody there wants it yet"
    await sync.stage({"engine-0": 3, "engine-1": 3})
    # Node b cannot see what lies on node a.
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    await sync.load({"engine-1": 3})
    (tmp_path / "elsewhere").rename(tmp_path / "a")
    await sync.load({"engine-0": 3})
    assert pool.read == {
        "engine-0": str(tmp_path / "a" / "version-3.safetensors"),
        "engine-1": str(tmp_path / "b" / "version-3.safetensors"),
    }
    assert (stores["a"].fetched, stores["b"].fetched) == ([], ["version-3.safetensors"])


async def test_a_version_that_is_forgotten_lies_on_no_node_any_more(tmp_path):
    pool, _ = two_nodes(tmp_path)
    sync = WeightSync(pool, FileTransport(pool, tmp_path), 5.0)
    for version in (3, 4):
        await sync.snapshot(version)
        await sync.publish(version)
    await sync.load({"engine-0": 4, "engine-1": 3})
    sync.forget({3})
    await sync.load({"engine-1": 4})
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
    assert left == ["a/version-4.safetensors", "b/version-4.safetensors"]


async def test_a_node_that_dies_as_it_fetches_loses_its_engine_and_the_others_load(tmp_path):
    pool, _ = two_nodes(tmp_path, b=(ActorDiedError(),))
    sync = WeightSync(pool, FileTransport(pool, tmp_path), 5.0)
    await sync.snapshot(3)
    await sync.publish(3)
    times = await sync.load({"engine-0": 3, "engine-1": 3})
    assert sync.lost == {"engine-1"} and [t.pause_ms for t in times.values()] == [2.0]


async def test_a_node_that_cannot_be_reached_for_a_moment_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("rl.nodes.nodes.AGAIN_SECONDS", 0.0)
    away = ActorUnavailableError("RPC error", b"0" * 16)
    pool, stores = two_nodes(tmp_path, b=(away, away))
    sync = WeightSync(pool, FileTransport(pool, tmp_path), 5.0)
    await sync.snapshot(3)
    await sync.publish(3)
    await sync.load({"engine-1": 3})
    assert len(stores["b"].fetched) == 3 and not sync.lost


async def test_a_node_without_room_ends_the_run_with_a_sentence(tmp_path):
    pool, _ = two_nodes(tmp_path, b=(OSError("No space left on device"),))
    sync = WeightSync(pool, FileTransport(pool, tmp_path), 5.0)
    await sync.snapshot(3)
    await sync.publish(3)
    with pytest.raises(SyncError, match=r"^engine-1 could not load version 3: No space left"):
        await sync.load({"engine-1": 3})


def test_what_is_emptied_leaves_no_folder_but_another_nodes(tmp_path):
    run = tmp_path / "run"
    for node in "ab":
        NodeStore(str(node_folder(run, node)))
        (run / node / "version-1.safetensors").touch()
    empty(run / "a")
    assert sorted(path.name for path in run.iterdir()) == ["b", "b.owner"]
    empty(run / "b")
    assert not run.exists()


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_a_file_of_several_chunks_comes_over_as_it_is(tmp_path):
    size = 2 * CHUNK_BYTES + 12345
    try:
        start_local_ray(object_store_mib=256)
        stores: list[Any] = [
            ray.remote(num_cpus=0, max_concurrency=8)(NodeStore).remote(str(tmp_path / node))  # pyright: ignore[reportCallIssue]
            for node in "ab"
        ]
        ray.get([store.__ray_ready__.remote() for store in stores], timeout=60)
        (tmp_path / "a" / "version-1").write_bytes(os.urandom(size))
        assert ray.get(stores[1].fetch.remote("version-1", stores[0]), timeout=60) == size
        both = [(tmp_path / node / "version-1").read_bytes() for node in "ab"]
        assert both[0] == both[1]
        with pytest.raises(FileNotFoundError):
            ray.get(stores[1].fetch.remote("version-2", stores[0]), timeout=60)
        assert [path.name for path in (tmp_path / "b").iterdir()] == ["version-1"]
        ray.get(stores[1].clear.remote(), timeout=60)
        assert not (tmp_path / "b").exists()
    finally:
        ray.shutdown()
