"""The version window, admission and rebalancing together: worked examples and a random walk of a run."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.placement import EngineState, InProgress
from rollout.scheduler import Backlog, Decision, Limits, admission, decide, trigger
from rollout.window import Rules, Window, may_step, publish, slide

LIMITS = Limits(batch_groups=2, group_size=1, target=6, engine_limit=2)
MODES = {
    "sync": Rules(live=1, max_staleness=0),
    "one_step": Rules(live=1, max_staleness=1),
    "in_flight": Rules(live=1, max_staleness=2, in_place=True),
    "dora": Rules(live=3, max_staleness=3),
    "dora discard": Rules(live=3, max_staleness=2, eviction="discard"),
}


def test_a_window_under_block_slides_when_its_oldest_version_has_drained():
    rules = MODES["dora"]
    window = publish(Window((3, 4, 5)), 6)
    assert slide(window, {3: 1, 4: 0, 5: 2}, rules, 3) == (window, ())
    assert slide(window, {4: 1, 5: 2}, rules, 3) == (Window((4, 5, 6)), ())
    assert slide(window, {5: 2}, rules, 3) == (Window((4, 5, 6)), ()), "no more than it has to"


def test_a_window_under_discard_slides_at_once():
    rules = MODES["dora discard"]
    window = publish(Window((3, 4, 5)), 6)
    assert slide(window, {3: 1, 5: 2}, rules, 3) == (Window((4, 5, 6)), (3,))
    assert slide(window, {5: 2}, rules, 3) == (Window((4, 5, 6)), ())


def test_with_fewer_engines_than_live_versions_the_newest_waits_for_an_engine():
    rules = MODES["dora"]
    window = publish(Window((3, 4)), 5)
    assert slide(window, {3: 1, 4: 1}, rules, 2) == (window, ())
    assert slide(window, {4: 1}, rules, 2) == (Window((4, 5)), ())


def test_the_learner_waits_for_work_that_would_become_too_old():
    rules = MODES["dora"]
    assert may_step(5, {3: 2, 5: 4}, 2, rules), "3 can be trained on up to version 6"
    assert not may_step(5, {3: 3, 5: 4}, 2, rules), "one step is left and takes two groups"
    assert not may_step(6, {3: 1}, 2, rules)
    assert may_step(6, {3: 1}, 2, MODES["dora discard"])


def test_rebalancing_is_due_after_a_step_under_pressure_and_after_a_while():
    calm = {"step_ended": False, "cache_usage": 0.5, "idle_seconds": 1.0}
    assert trigger(LIMITS, **calm) is None
    assert trigger(LIMITS, **calm | {"idle_seconds": 60.0}) == "timer"
    assert trigger(LIMITS, **calm | {"cache_usage": 0.95, "idle_seconds": 60.0}) == "cache"
    assert trigger(LIMITS, **calm | {"cache_usage": 0.95, "idle_seconds": 5.0}) is None
    assert trigger(LIMITS, **calm | {"step_ended": True, "cache_usage": 0.95}) == "step"


def test_no_more_is_in_progress_than_the_engines_can_play():
    limits = replace(LIMITS, batch_groups=4, group_size=2, target=99)
    backlog = Backlog(Window((0,)), 0, active={0: 3}, groups={0: 2}, buffered={0: 1})
    assert admission(backlog, MODES["dora"], limits) == {0: 13}, "what staleness allows"
    assert admission(backlog, MODES["dora"], replace(limits, max_active=8)) == {0: 2}
    assert admission(backlog, MODES["dora"], replace(limits, max_active=2)) == {}


def timeline(rules: Rules, gone: tuple[int, ...] = ()) -> tuple[Decision, list[InProgress]]:
    """Figure 5 of the LongCat-Flash-Thinking report (arXiv 2509.18883) at the interruption of step n.

    Versions n-2, n-1, n are 0, 1, 2; the learner publishes 3. The elastic engines 5 to 8 go to the
    learner, the standalone ones 1 to 4 generate on, one trajectory each.
    """
    limits = replace(LIMITS, batch_groups=6, engine_limit=1, slack=0)
    held = [("12", 0, "1"), ("11", 1, "3"), ("4", 1, "4"), ("9", 2, "5"), ("13", 2, "6")]
    held += [("7", 2, "7"), ("10", 0, "8")]
    trajectories = [InProgress(*one) for one in held if one[1] not in gone]
    counts = Counter(one.version for one in trajectories)
    backlog = Backlog(publish(Window((0, 1, 2)), 3), 3, counts, counts, {2: 30})
    standalone = zip("1234", (0, 0, 1, 1), strict=True)
    engines = [EngineState(name, version, 1) for name, version in standalone]
    return decide(backlog, engines, trajectories, rules, limits), trajectories


def test_the_timeline_example_under_discard():
    decision, trajectories = timeline(MODES["dora discard"])
    given_up = {t.id for t in trajectories if t.version in decision.evicted}
    assert given_up == {"12", "10"}, "freshly begun on the oldest version, now too old"
    assert decision.window == Window((1, 2, 3))
    moves = {move.id: move for move in decision.placement.requests}
    assert {m.engine: m.version for m in decision.placement.weights} == {"1": 2, "2": 2}
    assert len(moves) == 2 and set(moves) < {"7", "9", "13"}, "two move to the standalone engines"
    assert {move.target for move in moves.values()} == {"1", "2"}
    assert set(decision.placement.parked) == {"7", "9", "13"} - set(moves), "one is parked"
    assert {"4", "11"}.isdisjoint(moves), "their caches are used where they are"


def test_the_timeline_example_under_block():
    """Nothing is given up: the window waits for 10 and 12, and they keep an engine."""
    decision, _ = timeline(MODES["dora"])
    assert (decision.evicted, decision.window) == ((), publish(Window((0, 1, 2)), 3))
    assert decision.admit == {}
    assert "12" not in decision.placement.parked
    later, _ = timeline(MODES["dora"], gone=(0,))
    assert (later.evicted, later.window) == ((), Window((1, 2, 3)))


FIRST = Window((0,))


@dataclass
class World:
    """A run in which anything may happen in any order; the scheduler decides, `apply` carries it out."""

    rules: Rules
    limits: Limits
    engines: dict[str, int | None]
    rng: random.Random
    window: Window = FIRST
    learner: int = 0
    where: dict[str, InProgress] = field(default_factory=dict)
    born: dict[str, int] = field(default_factory=dict)
    group_of: dict[str, str] = field(default_factory=dict)
    open_groups: dict[str, tuple[int, int]] = field(default_factory=dict)
    buffered: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    arrivals: bool = True

    def rebalance(self) -> None:
        place = self.limits.engine_limit
        backlog = Backlog(
            window=self.window,
            learner_version=self.learner,
            active=Counter(one.version for one in self.where.values()),
            groups=Counter(version for version, _ in self.open_groups.values()),
            buffered=Counter(version for version, _ in self.buffered),
        )
        engines = [EngineState(name, held, place) for name, held in self.engines.items()]
        decision = decide(backlog, engines, list(self.where.values()), self.rules, self.limits)
        assert 1 <= len(decision.window.versions) <= min(self.rules.live, len(self.engines))
        # A group begins anew as a whole: its finished members are given up with it.
        for group in [g for g, (v, _) in self.open_groups.items() if v in decision.evicted]:
            del self.open_groups[group]
            self.counts["discarded"] += self.limits.group_size
        self.where = {i: t for i, t in self.where.items() if self.group_of[i] in self.open_groups}
        self.window = decision.window
        if self.rules.in_place:
            newest = self.window.newest
            self.where = {i: replace(t, version=newest) for i, t in self.where.items()}
            self.engines = dict.fromkeys(self.engines, newest)
        else:
            self.engines |= {m.engine: m.version for m in decision.placement.weights}
        for move in decision.placement.requests:
            self.where[move.id] = replace(self.where[move.id], engine=move.target)
        for id in decision.placement.parked:
            self.where[id] = replace(self.where[id], engine="")
        for one in self.where.values():
            if not self.rules.in_place:
                assert one.version == self.born[one.id], "one version per trajectory"
            assert not one.engine or self.engines[one.engine] == one.version
        busy = {t.version for t in self.where.values()}
        assert busy <= {self.engines[e] for e in self.engines}, "an engine for each"
        if self.arrivals:
            for version, groups in decision.admit.items():
                for _ in range(groups):
                    self.begin(version)

    def begin(self, version: int) -> None:
        group = f"g{self.counts['groups']}"
        self.counts["groups"] += 1
        self.counts["dispatched"] += self.limits.group_size
        self.open_groups[group] = (version, self.limits.group_size)
        for index in range(self.limits.group_size):
            id = f"{group}.{index}"
            self.where[id] = InProgress(id, version, "", self.rng.randint(0, 99))
            self.born[id], self.group_of[id] = version, group

    def finish(self) -> bool:
        playing = [t for t in self.where.values() if t.engine]
        if not playing:
            return False
        one = self.rng.choice(playing)
        del self.where[one.id]
        group = self.group_of[one.id]
        version, left = self.open_groups.pop(group)
        if left > 1:
            self.open_groups[group] = (version, left - 1)
        elif self.rng.random() < 0.2:
            self.counts["filtered"] += self.limits.group_size
        else:
            self.buffered.append((version, group))
        return True

    def train(self) -> bool:
        self.buffered.sort()
        batch, rest = (
            self.buffered[: self.limits.batch_groups],
            self.buffered[self.limits.batch_groups :],
        )
        remaining = Counter(version for version, _ in rest)
        remaining.update(version for version, _ in self.open_groups.values())
        enough = len(batch) == self.limits.batch_groups
        if not enough or not may_step(
            self.learner, remaining, self.limits.batch_groups, self.rules
        ):
            return False
        for version, _ in batch:
            stale = self.learner - version > self.rules.max_staleness
            if self.rules.eviction == "block" and not self.rules.in_place:
                assert not stale, f"version {version} trained on at {self.learner}"
            self.counts["stale" if stale else "trained"] += self.limits.group_size
        self.buffered = rest
        self.learner += 1
        self.window = publish(self.window, self.learner)
        self.rebalance()
        return True

    def check(self) -> None:
        open_ = sum(self.limits.group_size for _ in self.open_groups)
        waiting = len(self.buffered) * self.limits.group_size
        ends = sum(self.counts[k] for k in ("trained", "stale", "filtered", "discarded"))
        assert self.counts["dispatched"] == open_ + waiting + ends
        assert sum(left for _, left in self.open_groups.values()) == len(self.where)


@pytest.mark.parametrize("mode", MODES)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_run_keeps_its_promises_and_drains(mode, data):
    """One version per trajectory, an engine for every version with work, nothing lost or too old; with
    arrivals stopped everything ends."""
    draw = data.draw
    world = World(
        rules=MODES[mode],
        limits=replace(
            LIMITS,
            batch_groups=draw(st.integers(1, 4)),
            group_size=draw(st.integers(1, 3)),
            target=draw(st.integers(24, 90)),
            engine_limit=draw(st.integers(1, 8)),
            slack=draw(st.integers(0, 2)),
            expected_tokens=draw(st.sampled_from([0, 50])),
            max_active=draw(st.sampled_from([6, 2**31])),
        ),
        engines=dict.fromkeys([f"e{i}" for i in range(draw(st.integers(1, 5)))], 0),
        rng=random.Random(draw(st.integers(0, 10**6))),
    )
    world.rebalance()
    for act in draw(st.lists(st.sampled_from("ffffftrb"), max_size=80)):
        if act == "f":
            world.finish()
        elif act == "t":
            world.train()
        else:
            world.rebalance()
        world.check()
    before = world.learner
    for _ in range(60):
        world.finish() or world.train() or world.rebalance()
    assert world.learner > before, "a run that goes on learns"
    world.arrivals = False
    for _ in range(3 * len(world.where) + 10):
        world.finish()
        world.train()
        world.rebalance()
        world.check()
    assert not world.where and not world.open_groups
