"""Questions to a run's index of trajectories: filters, orders, pages, rewards, and the next one."""

import random
import sqlite3
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fakes import scored, turn
from hypothesis import given
from hypothesis import strategies as st
from recorded_run import RecordedRun

from rl.dashboard import trajectory_index
from rl.dashboard.trajectory_filter import ORDERS, TrajectoryFilter, read_filter
from rl.dashboard.trajectory_index import BINS, beside, choices, find, group, hits, mark, tally


@pytest.fixture
def run(tmp_path):
    recorded = RecordedRun(tmp_path)
    yield recorded
    recorded.close()


def ids(folder: Path, **asked) -> list[str]:
    return [one.id for one in hits(folder, TrajectoryFilter(**asked))]


def test_the_newest_come_first_and_every_filter_leaves_what_it_names(run):
    run.rewards("a", 0.0, 1.0, split="heldout-before")
    run.rewards("b", 0.5, 1.0, env="units", dropped="zero_variance")
    long = scored("c.0", 0.25, turns=[turn(range(50), range(50), v=7)], stop="max_turns")
    run.group("c", [long, scored("c.1", stop="env_fault", fault="it broke")], env="units")
    assert ids(run.path) == ["c.1", "c.0", "b.1", "b.0", "a.1", "a.0"]
    assert ids(run.path, env="units", stop="completed") == ["b.1", "b.0"]
    assert ids(run.path, split="heldout-before") == ["a.1", "a.0"]
    assert ids(run.path, outcome="filtered:zero_variance") == ["b.1", "b.0"]
    assert ids(run.path, outcome="sample") == ["c.1", "c.0", "a.1", "a.0"]
    assert ids(run.path, fault="with") == ["c.1"]
    assert ids(run.path, fault="without", env="units") == ["c.0", "b.1", "b.0"]
    assert ids(run.path, reward_min=0.25, reward_max=0.5) == ["c.0", "b.0"]
    assert ids(run.path, version=7) == ["c.0"]
    assert ids(run.path, tokens_min=5) == ["c.0"]
    assert ids(run.path, tokens_max=4, env="units") == ["c.1", "b.1", "b.0"]
    assert choices(run.path).envs == ("calculator", "units")
    assert choices(run.path).stops == ("completed", "env_fault", "max_turns")


def test_a_fault_has_no_reward_in_the_histogram(run):
    run.group("a", [scored("a.0", 0.5), scored("a.1", 0.0, stop="env_fault", fault="it broke")])
    assert tally(run.path, TrajectoryFilter()).hits == 2
    assert [bar.trajectories for bar in tally(run.path, TrajectoryFilter()).bars] == [1]


def test_each_order_goes_both_ways_through_all_pages_and_step_by_step(run, monkeypatch):
    monkeypatch.setattr(trajectory_index, "PAGE_ROWS", 4)
    draw = random.Random(0)
    for n in range(11):
        reward, size, version = draw.choice([0.0, 0.5, 1.0]), draw.randint(1, 4), draw.randint(0, 2)
        turns = [turn((1,) * size, (2,) * size, v=version)] if n else []
        run.group(f"g{n}", [scored(f"g{n}.0", reward, turns=turns, stop="completed")])
    run.group("f", [scored("f.0", stop="timeout", fault="late")])
    for order in [*ORDERS, *(f"-{order}" for order in ORDERS)]:
        asked = TrajectoryFilter(order=order)
        pages = [hits(run.path, replace(asked, page=page)) for page in (1, 2, 3, 4)]
        listed = [one for page in pages for one in page]
        assert (len(listed), len({one.id for one in listed}), pages[3]) == (12, 12, [])
        for one, other in pairwise(listed):
            assert beside(run.path, asked, one, forward=True) == other.id
            assert beside(run.path, asked, other, forward=False) == one.id
        assert beside(run.path, asked, listed[-1], forward=True) is None
        assert beside(run.path, asked, listed[0], forward=False) is None
    tokens = [one.tokens for one in hits(run.path, TrajectoryFilter(order="tokens"))]
    assert tokens == sorted(tokens, reverse=True)


def test_the_next_one_is_of_the_filter_even_from_one_that_is_not(run):
    run.rewards("a", 1.0, 0.0, 1.0)
    other = find(run.path, "a.1")
    assert other is not None
    asked = TrajectoryFilter(reward_min=1.0)
    assert beside(run.path, asked, other, forward=True) == "a.0"
    assert beside(run.path, asked, other, forward=False) == "a.2"


@pytest.mark.heavy
@given(rewards=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_every_reward_is_in_one_bar_and_a_bar_finds_as_many_as_it_shows(tmp_path_factory, rewards):
    run = RecordedRun(tmp_path_factory.mktemp("bars"))
    run.rewards("a", *rewards)
    run.close()
    bars = tally(run.path, TrajectoryFilter()).bars
    assert sum(bar.trajectories for bar in bars) == len(rewards)
    assert len(bars) <= BINS
    for bar in bars:
        one = TrajectoryFilter(reward_min=bar.low, reward_max=bar.high)
        assert tally(run.path, one).hits == bar.trajectories
        assert tally(run.path, one).bars == bars


def test_a_group_has_its_members_in_order(run):
    run.rewards("g1", *[0.0] * 12)
    run.rewards("g11", 1.0)
    assert [one.id for one in group(run.path, "g1")] == [f"g1.{n}" for n in range(12)]
    assert group(run.path, "nothing") == []


def test_a_folder_without_an_index_has_no_trajectories(tmp_path):
    asked = TrajectoryFilter()
    assert (hits(tmp_path, asked), find(tmp_path, "a"), choices(tmp_path).envs) == ([], None, ())
    assert (tally(tmp_path, asked).hits, mark(tmp_path)) == (0, (None, None))


def test_what_was_added_changes_the_mark(run):
    run.rewards("a", 1.0)
    before = mark(run.path)
    assert mark(run.path) == before
    run.rewards("b", 1.0)
    assert mark(run.path) != before


def test_an_index_that_holds_anything_gives_checked_records(run):
    run.rewards("a", 1.0, 1.0)
    run.execute(
        "update trajectories set reward = 'much', tokens = x'ff00', grp = null, env = x'fffe', "
        "offset = 'here', start = 1e999, seconds = 'long', file = 7 where id = 'a.0'"
    )
    one = find(run.path, "a.0")
    assert one is not None
    assert (one.reward, one.tokens, one.group, one.offset, one.start) == (
        None,
        None,
        "",
        None,
        None,
    )
    assert one.file == "7"
    assert tally(run.path, TrajectoryFilter()).bars[0].trajectories == 1
    for order in ORDERS:
        assert len(hits(run.path, TrajectoryFilter(order=order))) == 2


def test_an_index_that_is_none_is_an_error_of_sqlite(tmp_path):
    (tmp_path / "trajectories.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(sqlite3.Error):
        hits(tmp_path, TrajectoryFilter())


def test_an_address_and_its_filter_are_the_same():
    asked = TrajectoryFilter(
        env="a&b",
        stop="max_turns",
        fault="with",
        reward_min=0.1,
        version=3,
        order="-tokens",
        page=2,
    )
    assert read_filter(dict(asked.query)) == asked
    assert TrajectoryFilter().query == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward_min", "nan"),
        ("reward_max", "1e999"),
        ("version", "two"),
        ("tokens_min", "1e300"),
        ("order", "id; drop table trajectories"),
        ("order", "--tokens"),
        ("fault", "maybe"),
        ("page", "-3"),
        ("page", "0"),
        ("nothing", "x"),
    ],
)
def test_what_an_address_cannot_mean_is_not_asked(name, value):
    assert read_filter({name: value}) == TrajectoryFilter()


@given(text=st.text(), name=st.sampled_from(["env", "outcome", "split", "stop"]))
def test_whatever_an_address_says_is_a_value_and_never_a_question(tmp_path_factory, text, name):
    run = RecordedRun(tmp_path_factory.mktemp("any"))
    run.rewards("a", 1.0)
    run.close()
    assert hits(run.path, read_filter({name: text})) == (
        [] if text else hits(run.path, TrajectoryFilter())
    )
