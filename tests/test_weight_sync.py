"""Weight sync: snapshot, publish, stage, load, forget; each failure is one sentence that names who."""

import asyncio
from pathlib import Path

import pytest
from fakes import FakePool

from rl.cluster import Cluster
from rl.config import ModelConfig, RunConfig
from rl.env_table import EnvTable
from rl.fleet.file_transport import FileTransport
from rl.fleet.weight_sync import SyncError, WeightSync

ENGINES = {"engine-0": 3, "engine-1": 3}


def weight_sync(pool: FakePool, folder: Path, load_seconds: float = 5.0) -> WeightSync:
    return WeightSync(pool, FileTransport(pool, folder), load_seconds)


async def test_a_version_is_copied_published_and_loaded_until_it_is_forgotten(tmp_path):
    pool = FakePool()
    sync = weight_sync(pool, tmp_path)
    assert await sync.snapshot(3) == 3.0
    written = await sync.publish(3)
    times = (await sync.load(ENGINES)).values()
    path = str(tmp_path / "version-3.safetensors")
    assert pool.log == [("snapshot", 3), ("publish", path), ("engine-0", 3), ("engine-1", 3)]
    assert written.bytes == 7
    assert [(t.pause_ms, t.swap_ms) for t in times] == [(2.0, 1.0), (2.0, 1.0)]
    await sync.snapshot(4)
    await sync.publish(4)
    sync.forget({4})
    assert [path.name for path in tmp_path.iterdir()] == ["version-3.safetensors"]
    await sync.load({"engine-1": 3})
    sync.forget({3})
    assert list(tmp_path.iterdir()) == []


async def test_a_version_is_staged_once_and_an_engine_that_has_not_staged_it_does_so_to_load_it(
    tmp_path,
):
    pool = FakePool()
    sync = weight_sync(pool, tmp_path)
    await sync.snapshot(3)
    await sync.publish(3)
    pool.log.clear()
    assert await sync.stage({"engine-0": 3}) == (5.0,)
    assert await sync.stage({"engine-0": 3}) == ()
    times = await sync.load(ENGINES)
    assert [t.staging_ms for t in times.values()] == [0.0, 5.0], "engine-1 had not staged it"
    assert pool.log == [("stage engine-0", 3), ("engine-0", 3), ("engine-1", 3)]
    await sync.stage({"engine-0": 3})
    assert pool.log[-1] == ("stage engine-0", 3), "what it had staged it generates with"


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        (
            {"snapshot": MemoryError("no room")},
            "the learner could not copy the weights of version 3: no room",
        ),
        ({"snapshot": FakePool.HANG}, "the learner did not copy the weights of version 3 in time"),
        ({"publish": OSError("disk full")}, "the learner could not publish version 3: disk full"),
        ({"publish": FakePool.HANG}, "the learner did not publish version 3 in time"),
        ({"stage engine-0": OSError("no file")}, "engine-0 could not stage version 3: no file"),
        ({"engine-1": RuntimeError("no room")}, "engine-1 could not load version 3: no room"),
    ],
)
async def test_a_failure_is_one_sentence_and_leaves_the_version_before(tmp_path, fail, sentence):
    pool = FakePool()
    sync = weight_sync(pool, tmp_path, 0.2)
    await sync.snapshot(2)
    await sync.publish(2)
    pool.fail = fail
    with pytest.raises(SyncError) as caught:
        await sync.snapshot(3)
        await sync.publish(3)
        await sync.stage(ENGINES)
        await sync.load(ENGINES)
    assert str(caught.value) == sentence
    assert sync.published >= {2} and (tmp_path / "version-2.safetensors").exists()


@pytest.mark.parametrize(
    ("fail", "engine", "sentence"),
    [
        ("stage engine-1", "engine-1", "engine-1 did not stage version 3 within 0.2 s"),
        ("engine-0", "engine-0", "engine-0 did not load version 3 within 0.2 s"),
    ],
)
async def test_an_engine_that_hangs_is_ended_and_lost(tmp_path, fail, engine, sentence):
    pool = FakePool({fail: FakePool.HANG})
    sync = weight_sync(pool, tmp_path, 0.2)
    await sync.snapshot(3)
    await sync.publish(3)
    await sync.stage(ENGINES)
    await sync.load({name: 3 for name in ENGINES if name not in sync.lost})
    assert sync.hung == {engine: sentence}
    assert sync.lost == {engine} and pool.ended == [engine]


@pytest.mark.engine
@pytest.mark.timeout(600)
async def test_the_learner_answers_while_versions_are_being_written(checkpoint, tmp_path):
    """Many are asked for before it is asked something else; in one line it would answer last."""
    config = RunConfig(
        name="publish",
        runs_dir=str(tmp_path),
        model=ModelConfig(path=str(checkpoint)),
        env=(EnvTable(id="calculator"),),
    )
    (tmp_path / "logs").mkdir()
    cluster = Cluster(config, tmp_path)
    paths = [str(tmp_path / f"version-{n}.safetensors") for n in range(60)]
    try:
        cluster.connect()
        learner = cluster._place_learner(str(checkpoint))["learner"]
        assert await learner.ready.remote() > 0
        for version in range(len(paths)):
            await learner.snapshot.remote(version)
        writing = [
            asyncio.ensure_future(learner.publish.remote(version, path))
            for version, path in enumerate(paths)
        ]
        await learner.snapshot.remote(len(paths))
        assert not all(one.done() for one in writing)
        assert len(set(await asyncio.gather(*writing))) == 1
    finally:
        cluster.stop()
