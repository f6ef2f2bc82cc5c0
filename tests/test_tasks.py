"""The task stream: the asked-for mix, in every prefix, the same for the same seed."""

from collections import Counter

from fakes import Counting
from hypothesis import given
from hypothesis import strategies as st

from envs.env import EnvConfig
from rl.config import EnvTable
from rl.tasks import TaskStream


def stream(weights: list[float], seed: int = 0, split="train") -> TaskStream:
    tables = [EnvTable(id="counting", name=f"e{i}", weight=w) for i, w in enumerate(weights)]
    return TaskStream(tables, [Counting(EnvConfig()) for _ in tables], split, seed)


def labels(weights: list[float], count: int) -> list[str]:
    s = stream(weights)
    return [s.next()[0] for _ in range(count)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_whole_round_holds_each_environment_by_its_weight(weights):
    counts = Counter(labels(weights, sum(weights)))
    assert counts == {f"e{i}": w for i, w in enumerate(weights)}


@given(st.lists(st.floats(0.1, 9), min_size=2, max_size=3), st.integers(1, 60))
def test_any_prefix_is_within_one_group_of_the_asked_for_share(weights, count):
    counts = Counter(labels(weights, count))
    for i, weight in enumerate(weights):
        assert abs(counts[f"e{i}"] - count * weight / sum(weights)) <= 1 + 1e-6


def test_equal_weights_take_turns():
    assert labels([1, 1, 1], 6) == ["e0", "e1", "e2"] * 2


def test_tasks_depend_on_seed_and_split_and_on_nothing_else():
    def first(seed, split="train"):
        s = stream([2, 1], seed, split)
        return [s.next() for _ in range(9)]

    assert first(3) == first(3)
    assert first(3) != first(4)
    assert first(3) != first(3, "heldout")
    assert {task.split for _, task in first(3, "heldout")} == {"heldout"}
