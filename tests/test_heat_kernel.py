"""FLGP: equal to a dense graph Laplacian and to a dense Gaussian process, and right on nested circles."""

import random
from dataclasses import asdict

import numpy as np
import pytest

from envs.env import Task
from rl.tasks.forecast import TaskOutcome
from rl.tasks.graph_forecast import GraphForecaster, expectations, fit_time, laplace
from rl.tasks.heat_kernel import HeatKernel
from rl.tasks.task_features import encoded


def points(count: int, seed: int = 0) -> np.ndarray:
    """Points about a spiral in three dimensions."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 4 * np.pi, count)
    spiral = np.stack([angle * np.cos(angle), angle * np.sin(angle), angle], 1)
    return spiral + rng.normal(0, 0.1, (count, 3))


def dense_laplacian(points_ND, landmarks_SD, neighbours) -> np.ndarray:
    """I - W, point by point: W[i, j] is the sum over landmarks u of P(i to u) P(u to j)."""
    count = len(points_ND)
    squares = ((points_ND[:, None, :] - landmarks_SD[None, :, :]) ** 2).sum(2)
    nearest = np.sort(squares, 1)[:, :neighbours]
    z = np.where(squares <= nearest[:, -1:], np.exp(-squares / np.median(nearest[:, -1])), 0.0)
    to_landmark = z / z.sum(1, keepdims=True)
    to_point = to_landmark / to_landmark.sum(0, keepdims=True)
    return np.eye(count) - to_landmark @ to_point.T


@pytest.mark.parametrize("eigenpairs", [12, 40])
def test_the_truncated_heat_kernel_is_that_of_the_dense_graph_laplacian(eigenpairs):
    cloud = points(500)
    fast = HeatKernel.fit(cloud, 40, neighbours=3, eigenpairs=eigenpairs)
    laplacian = dense_laplacian(cloud, fast.landmarks_SD, 3)
    assert np.allclose(laplacian.sum(1), 0), "rows of a transition matrix sum to 1"
    values, vectors = np.linalg.eigh(laplacian)
    values, vectors = values[:eigenpairs], vectors[:, :eigenpairs]
    assert fast.decay_K == pytest.approx(values, abs=1e-9)
    for time in (0.5, 8.0):
        expected = 500 * (vectors * np.exp(-time * values)) @ vectors.T
        found = fast.features(cloud, time)
        assert np.abs(found @ found.T - expected).max() < 1e-6 * expected.max()


def test_the_posterior_over_features_is_that_of_the_dense_gaussian_process():
    """Against Laplace's approximation in the space of functions, by its own fixed point."""
    rng = np.random.default_rng(1)
    cloud = points(60)
    features = HeatKernel.fit(cloud, 30, neighbours=3, eigenpairs=20).features(cloud, 3.0)
    seen, new = features[:40], features[40:]
    passes, fails = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 40).astype(float)
    kernel = seen @ seen.T + 1e-9 * np.eye(40)
    logit = np.zeros(40)
    for _ in range(200):
        rate = 1 / (1 + np.exp(-logit))
        weight = (passes + fails) * rate * (1 - rate)
        target = weight * logit + passes - (passes + fails) * rate
        step = kernel @ np.linalg.solve(np.eye(40) + weight[:, None] * kernel, target)
        logit = 0.5 * logit + 0.5 * step
    rate = 1 / (1 + np.exp(-logit))
    trials = passes + fails
    weight = trials * rate * (1 - rate)
    inverse = np.linalg.inv(kernel + np.diag(1 / np.maximum(weight, 1e-12)))
    cross = new @ seen.T
    mean = cross @ (passes - trials * rate)
    variance = np.diag(new @ new.T - cross @ inverse @ cross.T)
    likelihood = (passes * np.log(rate) + fails * np.log(1 - rate)).sum()
    _, determinant = np.linalg.slogdet(np.eye(40) + weight[:, None] * kernel)
    evidence = likelihood - 0.5 * logit @ np.linalg.solve(kernel, logit) - 0.5 * determinant

    found = laplace(seen, passes, fails)
    logits, variances = found.logits(new)
    assert logits == pytest.approx(mean, abs=1e-4)
    assert variances == pytest.approx(variance, abs=1e-4)
    assert found.evidence == pytest.approx(evidence, abs=1e-3)


def test_the_kernel_separates_circles_that_lie_in_each_other():
    """Six circles of two classes in turn, a hundred labels (arXiv 2405.13342)."""
    rng = np.random.default_rng(0)
    ring = rng.integers(0, 6, 2400)
    angle = rng.uniform(0, 2 * np.pi, 2400)
    radius = 1 + ring + rng.normal(0, 0.02, 2400)
    cloud = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    label = (ring % 2).astype(float)
    kernel = HeatKernel.fit(cloud, 300, neighbours=3, eigenpairs=64)
    vectors = kernel.eigenvectors(cloud)
    fit = fit_time(vectors[:100], kernel, label[:100], 1 - label[:100])
    logits, _ = fit.posterior.logits(vectors[100:] * kernel.damping(fit.time))
    assert ((logits > 0) != (label[100:] > 0.5)).mean() < 0.03


def test_expectations_are_means_over_draws():
    rng = np.random.default_rng(0)
    draws = 1 / (1 + np.exp(-rng.normal(-1.0, 1.5, 400_000)))
    value = draws * (1 - draws) * (1 - draws**8 - (1 - draws) ** 8)
    rates, values = expectations(np.array([-1.0]), np.array([1.5**2]), 8)
    assert rates[0] == pytest.approx(draws.mean(), abs=2e-3)
    assert values[0] == pytest.approx(value.mean(), abs=1e-3)


def test_points_that_are_all_alike_or_few_are_a_graph_too():
    for cloud in (np.zeros((50, 4)), np.eye(4), np.repeat(np.eye(2), 40, 0)):
        kernel = HeatKernel.fit(cloud, 10)
        assert np.isfinite(kernel.features(cloud, 2.0)).all()
        assert kernel.decay_K[0] == pytest.approx(0, abs=1e-9)


def test_features_tell_tasks_apart_by_words_and_sizes_and_take_any_json():
    def distance(one: object, other: object) -> float:
        return float(np.abs(encoded(one) - encoded(other)).sum())

    assert encoded({"a": [1, None, True, {"b": "x"}], "c": 1e300}).shape == (64,)
    assert np.isfinite(encoded({"n": -(10**40)})).all()
    assert distance({"chain": 3}, {"chain": 3}) == 0 < distance({"chain": 3}, {"chain": 4})
    assert distance({"q": "12 + 7"}, {"q": "34 + 5"}) == 0 < distance({"q": "12"}, {"q": "1234"})
    assert distance({"op": "add"}, {"op": "multiply"}) > 0


def rate_of(task: Task) -> float:
    """Longer tasks are harder."""
    return 1 / (1 + np.exp(task.data["length"] - 5.0))


def stream(seed: int):
    rng = random.Random(seed)
    while True:
        yield Task("t", {"length": rng.uniform(0, 10), "id": rng.random()})


def flgp() -> GraphForecaster:
    return GraphForecaster(0.9, 8, lambda task: encoded({"length": task.data["length"]}))


def taught(groups: int) -> GraphForecaster:
    """A forecaster after so many groups of tasks that do not come again."""
    forecaster, rng = flgp(), np.random.default_rng(0)
    for number, task in zip(range(groups), stream(0), strict=False):
        forecaster.forecast([task])
        passes = int(rng.binomial(8, rate_of(task)))
        forecaster.learn(task, TaskOutcome(passes, 8, number // 50, by_chance=True))
    return forecaster


def test_new_tasks_are_forecast_by_tasks_that_are_alike():
    forecaster = taught(250)
    new = [task for _, task in zip(range(100), stream(1), strict=False)]
    found = forecaster.forecast(new)
    errors = [abs(f.rate - rate_of(task)) for f, task in zip(found, new, strict=True)]
    assert np.mean(errors) < 0.08
    assert not any(f.known for f in found)
    best = max(zip(found, new, strict=True), key=lambda pair: pair[0].value)[1]
    assert 3.5 < best.data["length"] < 6.5


def test_without_a_graph_every_task_has_the_base_rate():
    forecaster = taught(10)
    new = [task for _, task in zip(range(5), stream(1), strict=False)]
    assert {f.rate for f in forecaster.forecast(new)} == {forecaster.base_rate}


def test_a_pack_of_few_tasks_gets_a_graph_too():
    forecaster, rng = flgp(), np.random.default_rng(0)
    tasks = [task for _, task in zip(range(24), stream(0), strict=False)]
    for number in range(120):
        task = tasks[number % len(tasks)]
        forecaster.forecast([task])
        passes = int(rng.binomial(8, rate_of(task)))
        forecaster.learn(task, TaskOutcome(passes, 8, number // 60, by_chance=True))
    found = forecaster.forecast(tasks)
    errors = [abs(f.rate - rate_of(task)) for f, task in zip(found, tasks, strict=True)]
    assert np.mean(errors) < 0.15


def test_a_restored_graph_forecasts_the_same():
    forecaster, again = taught(256), flgp()
    new = [task for _, task in zip(range(20), stream(1), strict=False)]
    state = forecaster.state(256)
    again.restore(state)
    assert asdict(again.state(256)) == asdict(state)
    forecaster.new_groups = 1000
    for one, other in zip(again.forecast(new), forecaster.forecast(new), strict=True):
        assert one.rate == pytest.approx(other.rate, abs=1e-6)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_a_feature_that_is_no_finite_number_is_a_word_and_spoils_no_other_feature(odd):
    plain, strange = encoded({"size": 3}), encoded({"size": 3, "score": odd})
    assert np.isfinite(strange).all()
    assert ((strange - plain) != 0).sum() == 1
