"""The learner's ranks behind one handle, with ranks that answer, raise, die or hang on command."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError

import rl.actors.learner_ranks
from rl.actors.learner import LearnerActor
from rl.actors.learner_ranks import LearnerRanks, RankError
from rl.actors.local_handle import local_handle
from rl.nodes.process import first_line


class FakeRank(LearnerActor):
    """Answers calls in their order; `then` says what a call ends with: a value, an error, or never."""

    def __init__(self, then: object) -> None:
        self.then = then
        self.asked: list[tuple[object, ...]] = []

    def step(self, groups):
        return self._answer("step", groups)

    def publish(self, version, path):
        return self._answer("publish", version, path)

    def save(self, folder, position):
        return self._answer("save", folder, position)

    def load(self, folder):
        return self._answer("load", folder)

    def lost(self, groups):
        return self._answer("lost", groups)

    async def _answer(self, *asked: object) -> object:
        self.asked.append(asked)
        if self.then == "hangs":
            await asyncio.Event().wait()
        if isinstance(self.then, Exception):
            raise self.then
        return self.then


def together(*then: object) -> tuple[LearnerRanks, list[FakeRank]]:
    ranks = [FakeRank(t) for t in then]
    return LearnerRanks([local_handle(rank) for rank in ranks]), ranks


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.actors.learner_ranks, "GRACE_SECONDS", 0.05)


async def test_every_rank_is_asked_and_rank_0_answers():
    learner, ranks = together({"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0})
    assert await learner.step.remote(["groups"]) == {"loss": 1.0}
    assert await learner.publish.remote(1, "path") == {"loss": 1.0}
    await learner.save.remote("folder", "/0")
    await learner.load.remote("folder")
    wanted = [
        ("step", ["groups"]),
        ("publish", 1, "path"),
        ("save", "folder", "/0"),
        ("load", "folder"),
    ]
    assert [rank.asked for rank in ranks] == [wanted] * 3


async def test_what_every_rank_refuses_is_raised_as_it_is():
    refused = ValueError("sample s0: its reward is nan")
    learner, _ = together(refused, ValueError(str(refused)))
    with pytest.raises(ValueError, match="sample s0: its reward is nan") as raised:
        await learner.step.remote([])
    assert raised.value is refused


async def test_a_rank_that_fails_while_the_others_wait_for_it_ends_the_call():
    learner, _ = together("hangs", MemoryError("out of memory"), "hangs")
    with pytest.raises(RankError) as raised:
        await learner.step.remote([])
    sentence = "rank 1 of the learner (learner-1.log) failed: out of memory"
    assert first_line(raised.value) == sentence


async def test_of_a_rank_that_died_and_those_that_lost_it_the_dead_one_is_named():
    learner, _ = together(RuntimeError("connection closed by peer"), ActorDiedError())
    with pytest.raises(RankError) as raised:
        await learner.step.remote([])
    assert first_line(raised.value) == "rank 1 of the learner (learner-1.log) died"


async def test_a_call_that_is_given_up_leaves_nothing_running():
    learner, _ = together("hangs", "hangs")
    before = asyncio.all_tasks()
    call = learner.step.remote([])
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_rank_0_alone_is_asked_what_it_can_find():
    learner, (first, second) = together([1], [])
    assert await learner.lost.remote(["a", "b"]) == [1]
    assert (first.asked, second.asked) == ([("lost", ["a", "b"])], [])
