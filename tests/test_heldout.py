"""Numbers of a held-out evaluation: pass@k against counting, intervals, faults and versions."""

import itertools
from fractions import Fraction

import pytest
from fakes import group_report, member

from rl.loop.evaluation import was_cut_off
from rl.record.evaluations import EvaluationRow
from rl.samples import heldout
from rl.samples.heldout import bootstrap, evaluated, heldout_rates, pass_at_k, sizes
from rl.samples.metrics import passed as has_passed


def by_enumeration(judged: int, passed: int, k: int) -> Fraction:
    """The share of all choices of k episodes that hold one that passed."""
    episodes = [True] * passed + [False] * (judged - passed)
    choices = list(itertools.combinations(episodes, k))
    return Fraction(sum(any(choice) for choice in choices), len(choices))


@pytest.mark.parametrize("judged", range(1, 9))
def test_pass_at_k_is_the_share_of_choices_with_one_that_passed(judged):
    for passed, k in itertools.product(range(judged + 1), range(1, judged + 1)):
        wanted = float(by_enumeration(judged, passed, k))
        assert pass_at_k(judged, passed, k) == pytest.approx(wanted, abs=1e-12)


def test_pass_at_one_is_the_pass_rate_and_large_numbers_are_exact():
    assert pass_at_k(1000, 250, 1) == pytest.approx(0.25, abs=1e-12)
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(("judged", "passed", "k"), [(3, 1, 4), (3, 1, 0), (2, 3, 1), (2, -1, 1)])
def test_pass_at_more_than_was_played_has_no_value(judged, passed, k):
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(judged, passed, k)


def test_pass_at_is_told_for_powers_of_two_and_for_all():
    assert [sizes(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def test_an_interval_is_that_of_the_normal_limit_and_the_same_each_time():
    tasks = [1.0] * 300 + [0.0] * 100
    low, high = bootstrap([tasks])
    assert (low, high) == bootstrap([tasks])
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)
    assert bootstrap([[1.0] * 9]) == (1.0, 1.0)


def test_the_interval_of_a_mean_over_environments_is_narrower_than_each():
    one = [1.0, 0.0] * 50
    (low, high), (mean_low, mean_high) = bootstrap([one]), bootstrap([one] * 4)
    assert (mean_high - mean_low) == pytest.approx((high - low) / 2, rel=0.15)


def played(env: str, *passes: bool | None, versions: tuple[int, ...] = (3,)):
    """A task's group; None: an episode that ended in a fault."""
    members = [
        member(
            f"e{n}",
            judged=full is not None,
            reward=float(full or 0),
            rewards={"solved": float(full or 0)},
            versions=versions,
        )
        for n, full in enumerate(passes)
    ]
    return group_report(env, members)


def test_a_task_counts_once_and_a_fault_is_no_failure():
    reports = [
        played("shop", True, True, None, None),
        played("shop", False, False, False, False),
        played("shop", None, None, None, None),
        played("sums", True, False, False, False),
    ]
    rates = heldout_rates(reports, 4)
    assert rates["shop"].pass_rate == 0.5 and rates["shop"].tasks == 2
    assert rates["shop"].episodes == 6
    assert rates["shop"].pass_at == {1: 0.5, 2: 0.5, 4: 0.0}, "two judged say nothing of pass@4"
    assert rates["sums"].pass_at == {1: 0.25, 2: 0.5, 4: 1.0}


def test_full_reward_is_full_however_its_parts_were_rounded():
    parts = [0.1] * 10
    assert sum(parts) < 1 and has_passed({"total": sum(parts)}, sum(parts))
    assert not has_passed({}, 0.999) and not has_passed({"solved": 0.5}, 2.0)


def test_the_interval_of_many_tasks_is_drawn_piece_by_piece(monkeypatch):
    rates = [[float(n % 3 == 0) for n in range(50)], [0.5, 1.0]]
    whole = bootstrap(rates)
    monkeypatch.setattr(heldout, "_AT_ONCE", 700)
    assert bootstrap(rates) == whole


def test_an_evaluation_that_was_cut_off_is_due_again_and_no_other():
    rows = [EvaluationRow(step=5, version=6), EvaluationRow(step=10, version=10)]
    assert was_cut_off(rows, 15, every=5) and was_cut_off([], 5, every=5)
    assert not was_cut_off(rows, 10, every=5) and not was_cut_off(rows, 6, every=3)
    assert not was_cut_off(rows, 12, every=5) and not was_cut_off([], 0, every=5)
    assert not was_cut_off([], 7, every=0)


def test_an_evaluation_says_its_versions_and_its_lag():
    reports = [played("shop", True, versions=(4, 5)), played("shop", False, versions=(5, 6))]
    found = evaluated(reports, 1, learner_version=8, served=4)
    assert (found.version, found.last_version, found.lag) == (4, 6, 4)
    values = found.metrics()
    assert values["eval/shop/pass_rate"] == values["eval/mean_pass_rate"] == 0.5
    assert values["eval/shop/low"] <= 0.5 <= values["eval/shop/high"]
    assert (values["eval/version"], values["eval/lag"]) == (4.0, 4.0)
    assert found.row()["env"]["shop"]["pass_at"] == {1: 0.5}


def test_an_evaluation_of_faults_alone_has_no_rates():
    found = evaluated([played("shop", None, versions=())], 1, learner_version=3, served=2)
    assert found.rates == {} and found.mean is None and found.row()["mean"] is None
    assert found.metrics() == {"eval/version": 2.0, "eval/lag": 1.0}
