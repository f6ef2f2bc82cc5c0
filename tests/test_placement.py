"""Which engine holds which version, and what moves for it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.placement import (
    LEARNER,
    EngineState,
    InProgress,
    RequestMove,
    WeightMove,
    place,
    share_engines,
    spread,
)

backlogs = st.dictionaries(st.integers(0, 9), st.integers(0, 500), max_size=6)


@given(st.integers(1, 300), backlogs)
def test_shares_add_up_and_no_version_with_a_backlog_goes_without(total, backlog):
    waiting = {version for version, size in backlog.items() if size}
    if len(waiting) > total:
        with pytest.raises(ValueError, match="versions have a backlog"):
            share_engines(total, backlog)
        return
    shares = share_engines(total, backlog)
    assert set(shares) == waiting
    assert sum(shares.values()) == (total if waiting else 0)
    assert all(share >= 1 for share in shares.values())


@given(st.integers(1, 300), backlogs)
def test_shares_are_the_quota_rounded_where_no_version_needs_its_one_engine(total, backlog):
    whole = sum(backlog.values())
    waiting = {version: size for version, size in backlog.items() if size}
    if any(total * size < whole for size in waiting.values()):
        return
    for version, share in share_engines(total, backlog).items():
        assert abs(share - total * waiting[version] / whole) < 1


def test_equal_claims_go_to_the_newer_version():
    assert share_engines(3, {4: 5, 5: 5}) == {4: 1, 5: 2}
    assert share_engines(4, {1: 1, 2: 1000, 3: 1}) == {1: 1, 2: 2, 3: 1}


@st.composite
def fleets(draw):
    versions = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True))
    count = draw(st.integers(len(versions), 12))
    held = st.one_of(st.none(), st.sampled_from(versions), st.just(77))
    limit = st.integers(1, 9)
    engines = [EngineState(f"e{i}", draw(held), draw(limit)) for i in range(count)]
    names = ["", *(e.name for e in engines)]
    trajectories = [
        InProgress(f"t{i}", draw(st.sampled_from(versions)), draw(st.sampled_from(names)), i % 7)
        for i in range(draw(st.integers(0, 60)))
    ]
    incoming = draw(st.dictionaries(st.sampled_from(versions), st.integers(0, 20)))
    return engines, trajectories, incoming, max(versions), draw(st.integers(0, 3))


@given(fleets())
def test_after_a_placement_everything_is_on_an_engine_of_its_version_or_parked(fleet):
    engines, trajectories, incoming, newest, slack = fleet
    plan = place(engines, trajectories, incoming, newest=newest, slack=slack)
    holds = {e.name: e.version for e in engines} | {m.engine: m.version for m in plan.weights}
    where = {t.id: t.engine for t in trajectories}
    for move in plan.requests:
        assert where[move.id] == move.source != move.target
        where[move.id] = move.target
    parked = set(plan.parked)
    assert len(parked) == len(plan.parked)
    loads = dict.fromkeys(holds, 0)
    for one in trajectories:
        if one.id not in parked:
            assert holds[where[one.id]] == one.version
            loads[where[one.id]] += 1
    assert all(loads[e.name] <= e.limit for e in engines)
    for one in trajectories:
        if one.id in parked:
            full = [e for e in engines if holds[e.name] == one.version]
            assert full and all(loads[e.name] == e.limit for e in full)


@given(fleets())
def test_a_placement_carried_out_asks_for_nothing_more(fleet):
    engines, trajectories, incoming, newest, slack = fleet
    plan = place(engines, trajectories, incoming, newest=newest, slack=slack)
    holds = {m.engine: m.version for m in plan.weights}
    moved = {m.id: m.target for m in plan.requests}
    after = [EngineState(e.name, holds.get(e.name, e.version), e.limit) for e in engines]
    still = [
        InProgress(t.id, t.version, "" if t.id in plan.parked else moved.get(t.id, t.engine))
        for t in trajectories
    ]
    again = place(after, still, incoming, newest=newest, slack=slack)
    assert again.weights == ()
    assert {m.id for m in again.requests} <= set(plan.parked)


@given(fleets())
def test_weights_come_from_an_engine_that_keeps_them_else_from_the_learner(fleet):
    engines, trajectories, incoming, newest, slack = fleet
    plan = place(engines, trajectories, incoming, newest=newest, slack=slack)
    leaving = {move.engine for move in plan.weights}
    holds = {e.name: e.version for e in engines}
    for move in plan.weights:
        siblings = {name for name, version in holds.items() if version == move.version} - leaving
        assert move.source in (siblings or {LEARNER})


@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 3), st.randoms(use_true_random=False))
def test_no_request_moves_that_could_stay(engines, count, slack, rng):
    names = [f"e{i}" for i in range(engines)]
    ones = [InProgress(f"t{i}", 0, rng.choice(names), rng.randint(0, 99)) for i in range(count)]
    moves, parked = spread(ones, dict.fromkeys(names, 1000), slack=slack)
    keep = math.ceil(count / engines) + slack
    above = sum(max(0, sum(t.engine == name for t in ones) - keep) for name in names)
    assert (len(moves), parked) == (above, [])


def test_the_shortest_caches_travel_and_the_longest_trajectories_go_on():
    ones = [InProgress(f"t{tokens}", 0, "a", tokens) for tokens in (30, 10, 40, 20)]
    moves, parked = spread(ones, {"a": 2, "b": 1})
    assert moves == [RequestMove("t20", 0, "a", "b")]
    assert parked == ["t10"]


@pytest.mark.parametrize(("expected_tokens", "old"), [(0, 1), (2000, 2)])
def test_stragglers_can_claim_engines_by_what_they_have_written(expected_tokens, old):
    """Two of 20,000 tokens claim as much as twenty of 100, where the first 2,000 still to come count."""
    engines = [EngineState(f"e{i}", 1, 20) for i in range(4)]
    ones = [InProgress(f"old{i}", 0, "", 20_000) for i in range(2)]
    ones += [InProgress(f"new{i}", 1, f"e{i % 4}", 100) for i in range(20)]
    plan = place(engines, ones, {}, newest=1, expected_tokens=expected_tokens)
    assert [move.version for move in plan.weights] == [0] * old


def test_the_load_balance_example_of_the_longcat_flash_thinking_report():
    """arXiv 2509.18883, figure 6: the old version is consolidated on A, C changes to the newest with weights
    and a request from D, and the new prompts fill up B, C and D."""
    engines = [
        EngineState(name, version, 2) for name, version in zip("ABCD", (0, 1, 0, 1), strict=True)
    ]
    held = [("2", 0, "A"), ("6", 1, "B"), ("4", 0, "C"), ("7", 1, "D"), ("8", 1, "D")]
    trajectories = [InProgress(id, version, engine, 9 - int(id)) for id, version, engine in held]
    plan = place(engines, trajectories, {1: 3}, newest=1)
    assert plan.weights == (WeightMove("C", 1, "D"),)
    assert set(plan.requests) == {RequestMove("4", 0, "C", "A"), RequestMove("8", 1, "D", "C")}
    assert plan.parked == ()
    after = {"B": ["6"], "C": ["8"], "D": ["7"]}
    new = [InProgress(id, 1) for id in ("9", "10", "11")]
    before = [InProgress(i, 1, engine) for engine, ids in after.items() for i in ids]
    moves, _ = spread([*before, *new], dict.fromkeys(after, 2))
    assert {move.target for move in moves} == {"B", "C", "D"} and len(moves) == 3
