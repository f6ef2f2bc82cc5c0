"""Forecasts of pass rates: learning values by quadrature, forgetting, unseen tasks, calibration by hand."""

import numpy as np
import pytest

from envs.env import Task
from rl.tasks.calibration import Calibration, ForecastOutcome, calibration_error, log_loss
from rl.tasks.forecast import BetaForecaster, TaskOutcome, key_of, learning_value

A, B = Task("t", {"n": 1}), Task("t", {"n": 2})


def outcome(
    passes: int, episodes: int = 8, version: int = 0, by_chance: bool = True
) -> TaskOutcome:
    return TaskOutcome(passes, episodes, version, by_chance)


@pytest.mark.parametrize(("a", "b", "size"), [(1, 1, 8), (0.7, 2.5, 4), (30, 9, 16), (2, 200, 2)])
def test_the_learning_value_is_the_integral_over_the_posterior(a, b, size):
    p = (np.arange(200_000) + 0.5) / 200_000
    log_density = (a - 1) * np.log(p) + (b - 1) * np.log1p(-p)
    weight = np.exp(log_density - log_density.max())
    value = p * (1 - p) * (1 - p**size - (1 - p) ** size)
    expected = (weight * value).sum() / weight.sum()
    assert learning_value(a, b, size) == pytest.approx(expected, rel=2e-3)


def test_a_task_of_middling_rate_is_worth_more_than_one_that_always_or_never_passes():
    beta = BetaForecaster(0.9, 8)
    tasks = [Task("t", {"n": n}) for n in range(3)]
    for task, passes in zip(tasks, (0, 4, 8), strict=True):
        for _ in range(3):
            beta.learn(task, outcome(passes))
    never, sometimes, always = beta.forecast(tasks)
    assert never.rate < 0.1 < 0.4 < sometimes.rate < 0.6 < 0.9 < always.rate
    assert sometimes.value > 5 * max(never.value, always.value)
    assert never.known and not beta.forecast([Task("t", {"n": 9})])[0].known


def test_what_an_earlier_policy_did_fades_to_what_is_forecast_of_any_task():
    beta = BetaForecaster(0.8, 8)
    beta.learn(A, outcome(0))
    fresh = beta.forecast([A])[0]
    for version in range(1, 60):
        beta.learn(B, outcome(6, version=version))
    assert key_of(A) not in beta.tasks, "what weighs next to nothing is not kept"
    assert beta.base_rate == pytest.approx(0.75, abs=0.1)
    later = beta.forecast([A])[0]
    assert fresh.rate < 0.15 and later.rate == pytest.approx(beta.base_rate)
    assert not later.known


def test_outcomes_weigh_by_their_version_in_whatever_order_they_come():
    late, early = BetaForecaster(0.5, 8), BetaForecaster(0.5, 8)
    for beta, order in ((late, (4, 2)), (early, (2, 4))):
        for version in order:
            beta.learn(A, outcome(8 if version == 4 else 0, version=version))
    assert late.forecast([A])[0].rate == pytest.approx(early.forecast([A])[0].rate)
    counts = late.tasks[key_of(A)]
    assert (counts.passes, counts.fails, counts.version) == (8, 8 * 0.25, 4)


def test_an_unseen_task_has_mean_and_spread_of_those_drawn_by_chance():
    rng = np.random.default_rng(0)
    beta = BetaForecaster(1.0, 8)
    for n in range(3000):
        passes = rng.binomial(8, rng.beta(0.6, 1.4))
        beta.learn(Task("t", {"n": n}), outcome(int(passes)))
        beta.learn(Task("t", {"n": n}), outcome(8, by_chance=False))
    assert beta.base_rate == pytest.approx(0.3, abs=0.02)
    assert beta.spread.strength == pytest.approx(2.0, abs=0.2)


def test_a_noisy_task_is_another_one():
    beta = BetaForecaster(0.9, 8)
    beta.learn(A, outcome(8))
    noisy = Task(A.env, A.data, noise=2)
    assert beta.forecast([A])[0].known and not beta.forecast([noisy])[0].known


def test_a_restored_forecaster_forecasts_the_same():
    beta, again = BetaForecaster(0.9, 8), BetaForecaster(0.9, 8)
    for n in range(50):
        beta.learn(Task("t", {"n": n % 7}), outcome(n % 9, version=n // 10, by_chance=n % 3 == 0))
    again.restore(beta.state(50))
    tasks = [Task("t", {"n": n}) for n in range(9)]
    assert again.forecast(tasks) == beta.forecast(tasks)
    assert again.state(50) == beta.state(50)


def test_log_loss_and_calibration_error_by_hand():
    groups = [(0.25, 1, 4), (0.25, 3, 4), (0.95, 8, 8)]
    by_hand = -(4 * np.log(0.25) + 4 * np.log(0.75) + 8 * np.log(0.95)) / 16
    assert log_loss(groups) == pytest.approx(by_hand)
    assert calibration_error(groups) == pytest.approx((abs(2 - 4) + abs(7.6 - 8)) / 16)
    assert log_loss([(0.0, 1, 1)]) < 10, "a certain error is bounded"


def test_metrics_hold_chosen_groups_against_those_drawn_by_chance():
    calibration = Calibration()
    assert calibration.metrics() == {}
    for chosen, passes in (("value", 4), ("value", 8), ("chance", 0), ("", 8)):
        calibration.add(ForecastOutcome(chosen, 0.5, 0.4, True, passes, 8, passes in (0, 8)))
    metrics = calibration.metrics()
    assert metrics["value/zero_variance"] == 0.5
    assert metrics["chance/zero_variance"] == 1.0
    assert metrics["log_loss"] == pytest.approx(np.log(2))
    assert metrics["value/passed"] == 0.75
