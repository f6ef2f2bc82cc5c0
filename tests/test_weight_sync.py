"""Weight sync: publish, load, forget; each failure is one sentence that names who."""

import pytest
from fakes import FakePool

from rl.weight_sync import SyncError, WeightSync

ENGINES = {"engine-0": 3, "engine-1": 3}


async def test_a_version_is_published_once_and_loaded_until_it_is_forgotten(tmp_path):
    pool = FakePool()
    sync = WeightSync(pool, tmp_path, 5.0)
    written = await sync.publish(3)
    times = await sync.load(ENGINES)
    assert pool.log == [
        ("publish", str(tmp_path / "version-3.safetensors")),
        ("engine-0", 3),
        ("engine-1", 3),
    ]
    assert (written.bytes, times.pause_ms, times.transfer_ms) == (7, (2.0, 2.0), (1.0, 1.0))
    await sync.publish(4)
    sync.forget({4})
    assert [path.name for path in tmp_path.iterdir()] == ["version-3.safetensors"]
    await sync.load({"engine-1": 3})
    sync.forget({3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        ({"publish": OSError("disk full")}, "the learner could not publish version 3: disk full"),
        ({"publish": FakePool.HANG}, "the learner did not publish version 3 in time"),
        ({"engine-1": RuntimeError("no room")}, "engine-1 could not load version 3: no room"),
        ({"engine-0": FakePool.HANG}, "engine-0 did not load version 3 within 0.2 s"),
    ],
)
async def test_a_failure_is_one_sentence(tmp_path, fail, sentence):
    sync = WeightSync(FakePool(fail), tmp_path, 0.2)
    with pytest.raises(SyncError) as caught:
        await sync.publish(3)
        await sync.load(ENGINES)
    assert str(caught.value) == sentence
