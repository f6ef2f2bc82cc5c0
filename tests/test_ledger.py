"""The ledger: a random walk over legal moves always balances, illegal moves name the trajectory."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.samples.ledger import Ledger, LedgerError

ENDS = {
    "in_flight": ("filtered", "stale", "failed", "cancelled"),
    "buffered": ("trained", "filtered", "stale", "failed", "cancelled"),
}
STATES = ("in_flight", "buffered")


def ledger(state: str) -> Ledger:
    """A ledger with the trajectory t0, brought to a state."""
    books = Ledger()
    books.dispatch("shop", ["t0"])
    if state != "in_flight":
        books.buffer(["t0"])
    if state not in STATES:
        books.close(["t0"], "trained")
    return books


@given(st.data())
def test_after_any_legal_moves_the_books_balance(data):
    books = Ledger()
    model: dict[str, tuple[str, str]] = {}  # id -> environment, state
    ended: Counter[str] = Counter()
    for number in range(data.draw(st.integers(0, 40))):
        move = data.draw(st.sampled_from(["dispatch", "buffer", "close"]))
        if move == "dispatch":
            env, count = data.draw(st.sampled_from(["shop", "maths"])), data.draw(st.integers(1, 3))
            ids = [f"t{number}.{index}" for index in range(count)]
            books.dispatch(env, ids)
            model |= dict.fromkeys(ids, (env, "in_flight"))
            continue
        state = "in_flight" if move == "buffer" else data.draw(st.sampled_from(STATES))
        there = sorted(id for id, (_, s) in model.items() if s == state)
        if not there:
            continue
        chosen = data.draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True))
        if move == "buffer":
            books.buffer(chosen)
            model |= {id: (model[id][0], "buffered") for id in chosen}
        else:
            outcome = data.draw(st.sampled_from(ENDS[state]))
            books.close(chosen, outcome, "why")
            ended.update(f"{model.pop(id)[0]}/{outcome}:why" for id in chosen)
    held = {s: {id for id, (_, state) in model.items() if state == s} for s in STATES}
    books.check(held["in_flight"], held["buffered"])
    for env, counts in books.counts().items():
        rest = {name: n for name, n in counts.items() if name != "dispatched"}
        assert sum(rest.values()) == counts["dispatched"]
        assert {f"{env}/{name}": n for name, n in rest.items() if name not in STATES} == {
            key: n for key, n in ended.items() if key.startswith(f"{env}/")
        }


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("in_flight", "trained"),
        *(("ended", o) for o in ("trained", "filtered", "stale", "failed", "cancelled")),
    ],
)
def test_an_illegal_end_names_the_trajectory(state, outcome):
    with pytest.raises(LedgerError, match=f"trajectory t0 .*cannot become {outcome}"):
        ledger(state).close(["t0"], outcome)


@pytest.mark.parametrize("state", ["buffered", "ended"])
def test_only_what_is_in_flight_can_be_buffered(state):
    with pytest.raises(LedgerError, match=r"trajectory t0 .*cannot become buffered"):
        ledger(state).buffer(["t0"])


def test_a_trajectory_is_dispatched_once():
    with pytest.raises(LedgerError, match="trajectory t0 was dispatched twice"):
        ledger("in_flight").dispatch("shop", ["t0"])


def test_an_unknown_trajectory_is_named():
    with pytest.raises(LedgerError, match="trajectory t9 cannot become cancelled"):
        ledger("in_flight").close(["t9"], "cancelled")


@pytest.mark.parametrize(
    ("state", "in_flight", "buffered", "named"),
    [
        ("in_flight", set(), set(), "in_flight"),
        ("in_flight", {"t0", "t1"}, set(), "in_flight"),
        ("buffered", set(), set(), "buffered"),
        ("buffered", {"t0"}, set(), "in_flight"),
        ("ended", set(), {"t0"}, "buffered"),
    ],
)
def test_check_names_what_is_in_the_run_or_in_the_ledger_but_not_in_both(
    state, in_flight, buffered, named
):
    wrong = "t1" if "t1" in in_flight else "t0"
    with pytest.raises(LedgerError, match=f"1 trajectories are {named} .*: {wrong}$"):
        ledger(state).check(in_flight, buffered)


def test_check_finds_counts_that_do_not_add_up():
    books = ledger("ended")
    books.dispatched["shop"] += 1
    with pytest.raises(LedgerError, match="shop: 2 dispatched, 1 accounted for"):
        books.check(set(), set())


def test_counts_are_per_environment_and_reason():
    books = Ledger()
    books.dispatch("shop", ["a", "b", "c"])
    books.dispatch("maths", ["d"])
    books.close(["a"], "failed", "timeout")
    books.buffer(["b"])
    assert books.counts() == {
        "shop": {"dispatched": 3, "in_flight": 1, "buffered": 1, "failed:timeout": 1},
        "maths": {"dispatched": 1, "in_flight": 1, "buffered": 0},
    }
    assert books.open_ids("in_flight") == ["c", "d"]
