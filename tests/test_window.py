"""Admission and placement, as functions, and in a small simulator of a whole run."""

import asyncio
import heapq
import random
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from rl.samples.sample_queue import BufferedGroup, SampleQueue
from rollout.window import RunAhead, groups_to_admit, staleness

small = st.integers(0, 40)
runs = st.builds(
    lambda version, behind, *rest: RunAhead(version, version + behind, *rest),
    small,
    st.integers(0, 3),
    small,
    small,
    st.integers(1, 16),
    st.integers(0, 4),
    st.integers(1, 64),
)


def run_ahead(**changes) -> RunAhead:
    return replace(RunAhead(5, 5, 0, 0, 4, 0, 100), **changes)


@given(runs)
def test_admission_is_never_negative_and_keeps_every_limit(run):
    admitted = groups_to_admit(run)
    assert admitted >= 0
    if admitted:
        assert run.in_flight + admitted <= run.max_in_flight
        behind = run.learner_version - run.version
        on_their_way = run.in_flight + run.buffered + admitted
        assert on_their_way <= (run.max_staleness + 1 - behind) * run.batch_groups


@given(runs)
def test_admission_leaves_no_room_unused(run):
    after = replace(run, in_flight=run.in_flight + groups_to_admit(run))
    assert groups_to_admit(after) == 0


def test_without_staleness_exactly_one_batch_is_admitted_per_version():
    assert groups_to_admit(run_ahead()) == 4
    assert groups_to_admit(run_ahead(in_flight=3)) == 1
    assert groups_to_admit(run_ahead(in_flight=1, buffered=3)) == 0


def test_while_engines_are_a_version_behind_a_synchronous_run_admits_nothing():
    assert groups_to_admit(run_ahead(version=4)) == 0
    assert groups_to_admit(run_ahead(version=4, max_staleness=1)) == 4


def test_staleness_allows_that_many_batches_more():
    assert groups_to_admit(run_ahead(max_staleness=2)) == 12
    assert groups_to_admit(run_ahead(max_staleness=2, buffered=4, in_flight=6)) == 2


def test_groups_in_flight_are_bounded_whatever_the_staleness_allows():
    assert groups_to_admit(run_ahead(max_staleness=9, max_in_flight=6, in_flight=5)) == 1
    assert groups_to_admit(run_ahead(max_staleness=9, max_in_flight=6, in_flight=6)) == 0


def test_staleness_counts_from_the_oldest_version():
    assert staleness(7, (7,)) == 0
    assert staleness(7, (6, 4, 7)) == 3


@dataclass
class Simulation:
    """A run in simulated time: groups take random times, the learner and the weight sync too.

    Admission is `groups_to_admit`, the queue is the real `SampleQueue`. A group's version is the
    oldest it can have: what the engines served when it was admitted.
    """

    rng: random.Random
    batch: int
    max_staleness: int
    max_in_flight: int
    steps: int
    filtered: float = 0.0
    overtaking: bool = False
    version: int = 0
    learner_version: int = 0
    clock: float = 0.0
    free_at: float = 0.0
    number: int = 0
    in_flight: int = 0
    training: list[BufferedGroup] = field(default_factory=list)
    events: list[tuple[float, int, str, int]] = field(default_factory=list)
    admitted: dict[int, int] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)
    stale: int = 0

    def run(self) -> "Simulation":
        self.queue = SampleQueue(self.max_staleness)
        self.admit()
        while self.learner_version < self.steps:
            self.clock, _, kind, version = heapq.heappop(self.events)
            getattr(self, kind)(version)
            self.learn()
            self.admit()
        return self

    def later(self, at: float, kind: str, version: int) -> None:
        self.number += 1
        heapq.heappush(self.events, (at, self.number, kind, version))

    def admit(self) -> None:
        now = RunAhead(
            self.version,
            self.learner_version,
            self.in_flight,
            len(self.queue.groups) + len(self.training),
            self.batch,
            self.max_staleness,
            self.max_in_flight,
        )
        for _ in range(groups_to_admit(now)):
            self.in_flight += 1
            self.admitted[self.version] = self.admitted.get(self.version, 0) + 1
            end = self.clock + self.rng.expovariate(1.0)
            if not self.overtaking:
                end = self.free_at = max(end, self.free_at)
            self.later(end, "finish", self.version)

    def finish(self, version: int) -> None:
        self.in_flight -= 1
        if self.rng.random() >= self.filtered:
            id = f"g{self.number}"
            self.queue.put(BufferedGroup(id, "fake", (id,), (version,), None))

    def learn(self) -> None:
        if not self.training:
            self.stale += len(self.queue.drop_stale(self.learner_version))
        if self.training or self.learner_version > self.version:
            return
        if len(self.queue.groups) >= self.batch:
            self.training = asyncio.run(self.queue.take(self.batch, self.learner_version))
            self.trained += [self.learner_version - g.versions[0] for g in self.training]
            self.later(self.clock + self.rng.expovariate(0.5), "step", self.learner_version)

    def step(self, version: int) -> None:
        self.learner_version, self.training = version + 1, []
        self.later(self.clock + self.rng.expovariate(2.0), "load", self.learner_version)

    def load(self, version: int) -> None:
        self.version = version


settings_of_runs = {
    "seed": st.integers(0, 2**32),
    "batch": st.integers(1, 6),
    "max_in_flight": st.integers(1, 30),
}


@given(max_staleness=st.integers(0, 4), **settings_of_runs)
def test_in_a_whole_run_without_overtaking_nothing_becomes_too_stale(
    seed, batch, max_staleness, max_in_flight
):
    run = Simulation(random.Random(seed), batch, max_staleness, max_in_flight, steps=12).run()
    assert run.stale == 0
    assert len(run.trained) == 12 * batch
    assert max(run.trained) <= max_staleness


@given(**settings_of_runs)
def test_a_run_without_staleness_admits_one_batch_per_version(seed, batch, max_in_flight):
    run = Simulation(random.Random(seed), batch, 0, max_in_flight, steps=12, overtaking=True).run()
    assert set(run.trained) == {0}
    assert all(count <= batch for count in run.admitted.values())


@given(max_staleness=st.integers(0, 3), filtered=st.floats(0, 0.8), **settings_of_runs)
def test_with_filtering_and_overtaking_the_run_goes_on_and_the_bound_still_holds(
    seed, batch, max_in_flight, max_staleness, filtered
):
    run = Simulation(
        random.Random(seed),
        batch,
        max_staleness,
        max_in_flight,
        steps=12,
        filtered=filtered,
        overtaking=True,
    ).run()
    assert len(run.trained) == 12 * batch
    assert max(run.trained) <= max_staleness


def test_a_run_that_may_be_stale_does_run_ahead():
    run = Simulation(random.Random(0), 4, 2, 30, steps=12).run()
    assert max(run.trained) == 2
