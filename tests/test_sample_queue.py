"""The queue between rollouts and learner: order, whole batches, the staleness bound."""

import asyncio

import pytest

from rl.samples.sample_queue import BufferedGroup, SampleQueue, count_by_version


def group(id: str, *versions: int) -> BufferedGroup:
    return BufferedGroup(id, "shop", (f"{id}.0",), versions or (0,), samples=None)


def queue(*groups: BufferedGroup, max_staleness: int = 1) -> SampleQueue:
    q = SampleQueue(max_staleness)
    for g in groups:
        q.put(g)
    return q


async def test_first_come_is_first_trained():
    q = queue(group("a"), group("b"), group("c"))
    assert [g.id for g in await q.take(2, 0)] == ["a", "b"]
    assert [g.id for g in q.groups] == ["c"]


async def test_take_waits_for_a_whole_batch():
    q = queue(group("a"))
    taking = asyncio.create_task(q.take(3, 0))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not taking.done()
    q.put(group("b"))
    await asyncio.sleep(0)
    assert not taking.done()
    q.put(group("c"))
    assert [g.id for g in await asyncio.wait_for(taking, 5)] == ["a", "b", "c"]
    assert q.groups == []


async def test_a_take_that_is_cancelled_takes_nothing():
    q = queue(group("a"))
    taking = asyncio.create_task(q.take(2, 0))
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert [g.id for g in q.groups] == ["a"]


def test_what_has_become_too_old_is_handed_back():
    q = queue(group("old", 3), group("mixed", 5, 3), group("fresh", 4), group("new", 5))
    assert [g.id for g in q.drop_stale(5)] == ["old", "mixed"]
    assert [g.id for g in q.groups] == ["fresh", "new"]
    assert q.drop_stale(5) == []


def test_groups_stand_by_their_oldest_version_and_are_counted_by_it():
    q = queue(group("a", 4), group("b", 5, 3), group("c", 4, 6), group("d", 3))
    assert [g.id for g in q.groups] == ["b", "d", "a", "c"]
    assert count_by_version(q.groups) == {3: 2, 4: 2}
    assert count_by_version(q.groups[1:]) == {3: 1, 4: 2}
    assert count_by_version([]) == {}


async def test_no_batch_ever_holds_a_group_that_is_too_old():
    with pytest.raises(AssertionError, match="group old is 2 versions old, 1 are allowed"):
        await queue(group("old", 3)).take(1, 5)


async def test_a_synchronous_queue_gives_out_the_present_version_only():
    q = queue(group("past", 4), group("now", 5), max_staleness=0)
    assert [g.id for g in q.drop_stale(5)] == ["past"]
    assert [g.id for g in await q.take(1, 5)] == ["now"]


async def test_fewer_than_a_batch_may_be_taken_as_soon_as_so_few_are_there():
    q = queue(group("a"))
    taking = asyncio.create_task(q.take(3, 0, fewest=2))
    await asyncio.sleep(0)
    assert not taking.done()
    q.put(group("b"))
    assert [g.id for g in await asyncio.wait_for(taking, 5)] == ["a", "b"]


async def test_no_more_than_the_fewest_are_taken_unless_the_rest_must_not_be_left():
    q = queue(*(group(name) for name in "abcde"))
    assert len(await q.take(4, 0, fewest=2)) == 2
    assert [g.id for g in await q.take(4, 0, lambda rest: not rest, fewest=2)] == ["c", "d", "e"]
