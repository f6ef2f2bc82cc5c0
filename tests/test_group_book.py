"""The books of a run: each group is in one place at a time, and the ledger's equation always holds."""

import asyncio
import subprocess
import sys

import pytest
from fakes import TASK, member
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rl.config import BatchConfig
from rl.loop.group_book import GroupBook
from rl.samples.group import GroupReport, GroupSpec
from rl.samples.ledger import LedgerError
from rl.samples.samples import Dropped
from rollout.window import Rules, Window

STEP = {"learner/tokens": 40.0, "parity/tokens": 0.0}
DORA = Rules(live=2, max_staleness=2)


def book(rules: Rules = DORA, **batch: float) -> GroupBook:
    return GroupBook(BatchConfig.model_validate({"groups": 2, "group_size": 2} | batch), rules, 0)


def report(spec: GroupSpec, version: int, *, dropped: int = 0, judged: bool = True) -> GroupReport:
    """A played group; the first `dropped` of its members give no sample."""
    members = tuple(
        member(id, versions=(version,), judged=judged, fault="" if judged else "it broke")
        for id in spec.ids
    )
    outcome = "filtered" if judged else "failed"
    gone = (Dropped(spec.ids[:dropped], outcome, "why"),) if dropped else ()
    return GroupReport(spec, members, spec.ids[dropped:], gone, 100.0, 101.0)


def played(one: GroupBook, version: int = 0, env: str = "a") -> GroupSpec:
    """A group that waits for the learner."""
    spec = one.begin(env, TASK, version)
    one.book(report(spec, version), spec.id)
    return spec


async def trained(one: GroupBook) -> dict[str, float]:
    await asyncio.wait_for(one.take_batch(), 1)
    return one.trained(dict(STEP))


async def test_a_group_goes_from_dispatch_to_trained_and_is_counted_at_each_place():
    one = book()
    spec = one.begin("a", TASK, 0)
    assert (spec.id, spec.ids, spec.version) == ("g000000", ("g000000.0", "g000000.1"), 0)
    assert one.next_id == "g000001" and one.backlog(Window((0,))).groups == {0: 1}
    one.book(report(spec, 0, dropped=1), "samples")
    assert one.ledger.counts()["a"] == {
        "dispatched": 2,
        "in_flight": 0,
        "buffered": 1,
        "filtered:why": 1,
    }
    assert one.backlog(Window((0,))).buffered == {0: 1} and not one.playing
    played(one)
    values = await trained(one)
    assert one.learner_version == 1 and one.training == []
    assert one.ledger.counts()["a"]["trained"] == 3
    assert values["staleness/max"] == 0.0 and values["selection/all/trained/trajectories"] == 3
    one.check()


def test_weights_that_change_under_requests_leave_groups_without_a_version_of_their_own():
    one = book(Rules(live=1, max_staleness=1, in_place=True))
    assert one.begin("a", TASK, 3).version is None
    assert one.backlog(Window((3,))).active == {3: 2}


def test_lost_and_evicted_groups_are_closed_and_are_in_flight_no_more():
    one = book()
    lost, old, young = (one.begin("a", TASK, version) for version in (0, 0, 1))
    one.lose(lost.id)
    assert one.evict((0,)) == [old] and list(one.in_flight) == [young.id]
    counts = one.ledger.counts()["a"]
    assert (counts["failed:controller_fault"], counts["stale:evicted"]) == (2, 2)
    assert one.playing == {1: 1}
    one.check()


def test_a_group_that_has_become_too_old_is_stale():
    one = book(Rules(live=1, max_staleness=0))
    played(one)
    assert one.drop_stale() == 0
    one.learner_version = 1
    assert one.drop_stale() == 1 and one.queue.groups == []
    assert one.ledger.counts()["a"]["stale:too_old"] == 2


async def test_a_batch_is_given_back_without_the_groups_whose_samples_are_gone():
    one = book()
    gone, kept = played(one), played(one)
    await one.take_batch()
    one.put_back({gone.id})
    assert [group.id for group in one.queue.groups] == [kept.id] and one.training == []
    assert one.ledger.counts()["a"]["failed:node_lost"] == 2
    one.check()


async def test_a_reused_group_fills_a_step_and_is_booked_once():
    one = book(groups=2, reuse_ratio=0.5)
    first = [played(one).id, played(one).id]
    await trained(one)
    fresh = played(one)
    await one.take_batch()
    assert [group.id for group in one.training] == [fresh.id]
    assert len(one.reused) == 1 and one.reused[0].id in first
    assert one.trained(dict(STEP))["replay/reused_groups"] == 1.0
    assert one.ledger.counts()["a"]["trained"] == 6


async def test_a_batch_stays_empty_once_the_queue_has_been_ended():
    one = book()
    one.queue.end()
    await asyncio.wait_for(one.take_batch(), 1)
    assert one.training == [] and one.reused == []


def test_a_fault_is_new_once_and_a_judged_group_ends_a_row_of_failures():
    one = book()
    first = one.book(report(one.begin("a", TASK, 0), 0, dropped=2, judged=False), "")
    assert [m.fault for m in first] == ["it broke"]
    assert one.book(report(one.begin("a", TASK, 0), 0, dropped=2, judged=False), "") == []
    assert one.stats.failed_in_a_row == 2 and one.stats.faults == {"it broke": 4}
    played(one)
    assert one.stats.failed_in_a_row == 0


def test_what_is_held_and_not_booked_is_an_error_that_names_it():
    one = book()
    one.begin("a", TASK, 0)
    one.in_flight.clear()
    with pytest.raises(LedgerError, match=r"g000000\.0, g000000\.1"):
        one.check()


def test_the_book_knows_no_ray():
    script = "import sys, rl.loop.group_book; print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "False"


class AnyOrder(RuleBasedStateMachine):
    """Moves in any order, over two environments and any versions; the equation holds after each."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.one = book(groups=2, reuse_ratio=0.5)
        self.newest = 0

    def teardown(self) -> None:
        self.one.cancel_all()
        self.one.check()
        for counts in self.one.ledger.counts().values():
            assert counts["in_flight"] == counts["buffered"] == 0
        self.loop.close()

    def some_group(self, data: st.DataObject) -> GroupSpec:
        return data.draw(st.sampled_from(list(self.one.in_flight.values())))

    @rule(env=st.sampled_from("ab"), back=st.integers(0, 2))
    def begin(self, env: str, back: int) -> None:
        self.one.begin(env, TASK, max(0, self.newest - back))

    @precondition(lambda self: self.one.in_flight)
    @rule(data=st.data(), dropped=st.integers(0, 2), judged=st.booleans())
    def book_played(self, data: st.DataObject, dropped: int, judged: bool) -> None:
        spec = self.some_group(data)
        assert spec.version is not None
        self.one.book(
            report(spec, spec.version, dropped=dropped if judged else 2, judged=judged), spec.id
        )

    @precondition(lambda self: self.one.in_flight)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.one.lose(self.some_group(data).id)

    @rule(version=st.integers(0, 5))
    def evict(self, version: int) -> None:
        evicted = self.one.evict((version,))
        assert all(spec.version == version for spec in evicted)
        assert not any(spec.version == version for spec in self.one.in_flight.values())

    @precondition(lambda self: not self.one.training and self.can_step())
    @rule()
    def take_batch(self) -> None:
        self.loop.run_until_complete(asyncio.wait_for(self.one.take_batch(), 1))
        assert len(self.one.training) + len(self.one.reused) == 2

    def can_step(self) -> bool:
        fewest = 2 - self.one.reuse.available
        groups = self.one.queue.groups
        return any(
            count <= len(groups) and self.one._may_step(groups[count:])
            for count in range(fewest, 3)
        )

    @precondition(lambda self: self.one.training)
    @rule()
    def train(self) -> None:
        self.one.trained(dict(STEP))
        self.newest += 1
        self.one.drop_stale()

    @precondition(lambda self: self.one.training)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        ids = [group.id for group in (*self.one.training, *self.one.reused)]
        self.one.put_back(data.draw(st.sets(st.sampled_from(ids))))

    @rule()
    def drop_stale(self) -> None:
        self.one.drop_stale()

    @invariant()
    def the_books_balance(self) -> None:
        self.one.check()
        for counts in self.one.ledger.counts().values():
            ends = sum(count for name, count in counts.items() if name != "dispatched")
            assert ends == counts["dispatched"]
        assert sum(self.one.playing.values()) == len(self.one.in_flight)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
