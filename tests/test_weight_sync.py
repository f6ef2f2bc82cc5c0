"""Weight sync: publish, then every engine loads; each failure is one sentence that names who."""

import pytest
from fakes import FakePool

from rl.weight_sync import SyncError, WeightSync


async def test_the_learner_publishes_before_the_engines_load_and_the_file_goes(tmp_path):
    pool = FakePool()
    times = await WeightSync(pool, tmp_path, 5.0).send(3)
    assert pool.log == [
        ("publish", str(tmp_path / "version-3.safetensors")),
        ("engine-0", 3),
        ("engine-1", 3),
    ]
    assert (times.bytes, times.pause_ms, times.transfer_ms) == (7, (2.0, 2.0), (1.0, 1.0))
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
    with pytest.raises(SyncError) as caught:
        await WeightSync(FakePool(fail), tmp_path, 0.2).send(3)
    assert str(caught.value) == sentence
    assert list(tmp_path.iterdir()) == []
