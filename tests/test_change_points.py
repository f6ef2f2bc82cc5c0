"""Change points of a metric: planted ones are found where they are, noise has none."""

import json

import numpy as np
import pytest

from rl.dashboard.alerts import alerts
from rl.dashboard.change_points import ChangePoint, change_points
from rl.dashboard.overview import overview_charts
from rl.dashboard.run_data import RunData


def found(values: np.ndarray) -> tuple[ChangePoint, ...]:
    """Changes of a series whose first step is 1."""
    return change_points(tuple(range(1, len(values) + 1)), tuple(values.tolist()))


def noise(random: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """Noise of standard deviation 1, each value correlated with the one before."""
    values = random.normal(size=count + 100)
    for i in range(1, len(values)):
        values[i] += correlation * values[i - 1]
    return values[100:] * np.sqrt(1 - correlation**2)


def test_the_published_example_is_recovered():
    """Linear splines with knots at 0.2 (twice: a jump), 0.5 and 0.7, 500 values, deviation 0.4: arXiv
    2405.13353's simulation."""
    x = np.arange(500) / 500
    truth = np.interp(x, [0, 0.2 - 1e-9, 0.2, 0.5, 0.7, 1], [0, -1, 1, 0, 1, 0])
    points = found(truth + np.random.default_rng(0).normal(0, 0.4, 500))
    assert [p.how for p in points] == ["rose", "turned up", "turned down"]
    for point, knot in zip(points, (0.2, 0.5, 0.7), strict=True):
        assert abs(point.step / 500 - knot) < 0.04
        assert point.low <= 500 * knot + 3 and 500 * knot - 3 <= point.high
        assert point.probability > 0.99


@pytest.mark.heavy
@pytest.mark.parametrize("count", [120, 200])
def test_a_planted_shift_of_two_deviations_is_found_within_five_steps(count):
    random = np.random.default_rng(5)
    hits, tries = 0, 12
    for _ in range(tries):
        at = int(random.integers(count // 4, 3 * count // 4))
        values = noise(random, count, 0.0)
        values[at:] -= 2
        points = found(values)
        hits += any(p.how == "fell" and abs(p.step - (at + 1)) <= 5 for p in points)
    assert hits / tries > 0.9


def test_the_interval_holds_the_step_and_the_means_are_those_beside_it():
    values = noise(np.random.default_rng(1), 120, 0.0) * 0.1 + 0.8
    values[70:] -= 0.5
    [point] = found(values)
    assert point.low <= 71 <= point.high and point.high - point.low <= 3
    assert point.before == pytest.approx(0.8, abs=0.05)
    assert point.after == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_flat_noise_has_no_change(correlation):
    random = np.random.default_rng(2)
    assert sum(bool(found(noise(random, 60, correlation))) for _ in range(20)) <= 1


@pytest.mark.slow
def test_of_200_flat_series_one_in_twenty_at_most_is_marked():
    random = np.random.default_rng(7)
    series = [(count, c) for count in (60, 150, 300) for c in (0.0, 0.3, 0.5, 0.7, 0.9)]
    marked = sum(bool(found(noise(random, *series[i % len(series)]))) for i in range(200))
    assert marked <= 10


def test_what_wanders_spikes_or_climbs_steadily_has_no_change():
    random = np.random.default_rng(3)
    assert sum(bool(found(np.cumsum(random.normal(size=120)))) for _ in range(10)) <= 1
    assert sum(bool(found(random.standard_t(3, size=120))) for _ in range(10)) <= 1
    assert found(np.arange(120) * 0.03 + random.normal(size=120)) == ()
    spike = noise(random, 120, 0.0)
    spike[60] += 40
    assert found(spike) == ()


@pytest.mark.parametrize("at", [[0], [17], [59], [20, 40], [30, 31]])
def test_a_constant_with_a_spike_or_two_has_no_change(at):
    values = np.full(60, 0.5)
    values[at] = 1.0
    assert found(values) == ()


def test_series_that_say_nothing_have_no_change():
    assert found(np.zeros(0)) == found(np.ones(100)) == found(np.arange(10.0)) == ()
    assert found(np.full(100, 0.1)) == found(np.full(100, 1e-300)) == ()
    assert found(np.arange(100.0)) == ()


def test_a_jump_without_any_noise_is_found():
    [point] = found(np.repeat([1.0, 0.0], 50))
    assert point.step == point.low == point.high == 51 and point.how == "fell"


def test_a_long_series_is_looked_at_in_blocks_and_steps_keep_their_names():
    values = noise(np.random.default_rng(4), 2001, 0.0)
    values[1200:] += 2
    points = change_points(tuple(range(0, 4002, 2)), tuple(values.tolist()))
    assert [p.how for p in points] == ["rose"]
    assert abs(points[0].step - 2400) <= 40


def test_a_fall_is_said_with_its_interval_and_with_what_changed_beside_it(tmp_path):
    random = np.random.default_rng(6)
    lines = [
        {
            "step": step,
            "time": float(step),
            "rollout/orders/reward": 0.8 - 0.4 * (step > 70) + 0.05 * random.normal(),
            "rollout/units/reward": 0.5 + 0.05 * random.normal(),
            "loss/entropy": 0.9 - 0.5 * (step > 69) + 0.05 * random.normal(),
            "optim/grad_norm": 1.0 + 0.1 * random.normal(),
        }
        for step in range(1, 141)
    ]
    (tmp_path / "config.toml").write_text('name = "a"\n', encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    run = RunData(tmp_path)
    run.refresh()
    assert not any("fell" in alert.text for alert in alerts(run, 141.0) if alert.level == "note")
    run.look_for_changes()
    [said] = [alert.text for alert in alerts(run, 141.0) if alert.level == "note"]
    assert said.startswith("reward of orders fell at step 71 (")
    assert "probability 0.9" in said and said.endswith("at the same steps: entropy fell.")
    [drawn] = [
        one["markLine"]["data"]
        for one in overview_charts(run)["reward"]["series"]
        if "markLine" in one
    ]
    assert drawn == [{"xAxis": 71, "name": "fell"}]
