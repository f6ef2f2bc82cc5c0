"""SelectionBias bias: against sums made by hand, and in a run whose long trajectories are dropped."""

import pytest
from fakes import member

from rl.samples.ledger import Ledger
from rl.samples.selection import SelectionBias


def test_the_dropped_and_the_trained_are_told_apart_by_environment():
    selection = SelectionBias()
    ledger = Ledger()
    for env, ids in (("a", ("a0", "a1", "a2")), ("b", ("b0",))):
        ledger.dispatch(env, ids)
        selection.dispatch(env, len(ids))
    short, long = member("a0", num_tokens=10, reward=1.0), member("a1", num_tokens=90, reward=0.0)
    fault = member("b0", num_tokens=30, judged=False, num_turns=5)
    selection.played("a", [short, long])
    selection.played("b", [fault])
    ledger.buffer(["a0"])
    for id, outcome in (
        ("a0", "trained"),
        ("a1", "filtered"),
        ("b0", "failed"),
        ("a2", "cancelled"),
    ):
        ledger.close([id], outcome)
        selection.close([id], outcome)
    found = selection.metrics()
    expected = {
        "a/dispatched/trajectories": 3,
        "a/played/tokens": 50,
        "a/trained/trajectories": 1,
        "a/trained/tokens": 10,
        "a/trained/reward": 1,
        "a/dropped/tokens": 90,
        "a/dropped/reward": 0,
        "b/dropped/turns": 5,
        "all/dispatched/trajectories": 4,
        "all/dropped/trajectories": 2,
        "all/dropped/tokens": 60,
        "all/played/reward": 0.5,
    }
    assert {key: found[f"selection/{key}"] for key in expected} == pytest.approx(expected)
    assert "selection/b/dropped/reward" not in found, "a fault has no reward"
    assert "selection/b/trained/tokens" not in found
