"""The mixture: asked-for shares in every prefix, who is passed over, and what is reserved for whom."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rl.tasks.mixture import RESERVED, Mixture, Quota


def mixture(*weights: float, **quotas) -> Mixture:
    return Mixture({f"e{i}": Quota(w) for i, w in enumerate(weights)} | quotas)


def labels(mix: Mixture, count: int, allowed=None) -> list[str | None]:
    return [mix.next(mix.quotas if allowed is None else allowed) for _ in range(count)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_whole_round_holds_each_environment_by_its_weight(weights):
    counts = Counter(labels(mixture(*weights), sum(weights)))
    assert counts == {f"e{i}": w for i, w in enumerate(weights)}


@given(st.lists(st.floats(0.1, 9), min_size=2, max_size=3), st.integers(1, 60))
def test_any_prefix_is_within_one_group_of_the_asked_for_share(weights, count):
    counts = Counter(labels(mixture(*weights), count))
    for i, weight in enumerate(weights):
        assert abs(counts[f"e{i}"] - count * weight / sum(weights)) <= 1 + 1e-6


def test_equal_weights_take_turns():
    assert labels(mixture(1, 1, 1), 6) == ["e0", "e1", "e2"] * 2


def test_more_groups_are_begun_of_one_that_is_over_sampled_and_its_asked_for_share_stays():
    mix = mixture(1, hard=Quota(1, over_sample=3))
    assert Counter(labels(mix, 40)) == {"e0": 10, "hard": 30}
    assert mix.asked() == {"e0": 0.5, "hard": 0.5}


def test_the_share_of_one_that_rests_goes_to_the_others_and_it_catches_nothing_up():
    mix = mixture(1, 1, 2)
    assert Counter(labels(mix, 30, {"e0", "e2"})) == {"e0": 10, "e2": 20}
    after = Counter(labels(mix, 8))
    assert all(abs(after[label] - want) <= 1 for label, want in (("e0", 2), ("e1", 2), ("e2", 4)))


def test_where_none_may_begin_there_is_none():
    assert mixture(1, 1).next(()) is None
    mix = mixture(few=Quota(1, most_groups=2))
    assert mix.next({"few"}, {"few": 1}) == "few"
    assert mix.next({"few"}, {"few": 2}) is None


def test_a_slow_environment_cannot_take_the_room_of_the_others():
    """`slow` never ends a group; `fast` goes on with what is reserved for it."""
    mix = mixture(slow=Quota(1), fast=Quota(1))
    busy, begun = Counter[str](), Counter[str]()
    for _ in range(200):
        room = 8 - busy.total()
        for left in range(room, 0, -1):
            label = mix.next(mix.quotas, busy, left)
            assert label is not None
            busy[label] += 1
            begun[label] += 1
        busy["fast"] = 0
    assert busy["slow"] == 8 - 8 * RESERVED / 2
    assert begun["fast"] >= 300


@given(
    weights=st.lists(st.floats(0.1, 9), min_size=1, max_size=5),
    busy=st.lists(st.integers(0, 20), min_size=5, max_size=5),
    resting=st.sets(st.integers(0, 4), max_size=4),
    room=st.integers(1, 20),
)
def test_room_is_never_left_and_whoever_is_below_its_reserve_has_a_place(
    weights, busy, resting, room
):
    mix = mixture(*weights)
    flight = {label: busy[i] for i, label in enumerate(mix.quotas)}
    allowed = {label for i, label in enumerate(mix.quotas) if i not in resting}
    places = sum(flight.values()) + room
    total = sum(mix.quotas[label].weight for label in allowed)
    for left in range(room, 0, -1):
        label = mix.next(allowed, flight, left)
        assert (label is None) == (not allowed)
        if label is None:
            return
        assert label in allowed
        flight[label] += 1
    reserve = {
        label: int(RESERVED * places * mix.quotas[label].weight / total) for label in allowed
    }
    if any(flight[label] < reserve[label] for label in allowed):
        for label in allowed:
            taken = flight[label] - busy[int(label[1:])]
            assert taken == 0 or flight[label] <= reserve[label], "from who lacks places"


def test_credit_stays_bounded_however_long_one_is_passed_over():
    mix = mixture(1, 1, 5)
    for _ in range(100):
        mix.next({"e0", "e1"})
    assert max(map(abs, mix.credit.values())) <= 7
