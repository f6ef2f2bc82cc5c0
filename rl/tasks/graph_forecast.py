"""Forecasts pass rates of tasks that were never played, from those of tasks that are alike: FLGP.

    task -> features -> graph over the tasks drawn lately (`rl.tasks.heat_kernel`) -> logit of the pass rate

The logit is a Gaussian process with the graph's heat kernel and a Bernoulli likelihood of passes and fails,
by Laplace's approximation (arXiv 2405.13342). Over the K features of the kernel that is a Bayesian logistic
regression: O(M K²) for M played tasks. The kernel's time is the one of a grid with the largest marginal
likelihood. Outcomes fade by policy version as those of `rl.tasks.forecast` do. Until the graph is built
every task has the base rate.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from envs.env import Task
from rl.record.position import ChoiceState
from rl.tasks.forecast import Forecast, Outcomes, TaskOutcome, key_of, learning_value
from rl.tasks.heat_kernel import HeatKernel, Matrix, Numbers

# The graph is built over so many tasks at first, anew whenever there are twice as many, and then as often as
# all of the last MOST_POINTS have changed.
FIRST_POINTS, MOST_POINTS = 16, 2048
LANDMARKS, NEIGHBOURS, EIGENPAIRS = 200, 3, 64
# Times of the heat kernel: from nearly no smoothing to the slowest modes alone.
TIMES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# The posterior is fitted anew for each version, and after so many groups.
REFIT_GROUPS = 32
NEWTON_STEPS, TOLERANCE = 30, 1e-6
FURTHEST = 5.0
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)


@dataclass(frozen=True)
class Posterior:
    """Laplace's approximation over K features: weights of mean_K and of the precision's Cholesky factor.

    evidence: the logarithm of the marginal likelihood.
    """

    mean_K: Numbers
    factor_KK: Matrix
    evidence: float

    def logits(self, features_NK: Matrix) -> tuple[Numbers, Numbers]:
        """Mean and variance of the logit at points, each of shape (N)."""
        solved_KN = np.linalg.solve(self.factor_KK, features_NK.T)
        return features_NK @ self.mean_K, (solved_KN**2).sum(0)


def laplace(
    features_MK: Matrix, passes_M: Numbers, fails_M: Numbers, start_K: Numbers | None = None
) -> Posterior:
    """Fit logits = features @ weights, with weights of N(0, 1), to passes and fails (Newton's method)."""
    weights_K = np.zeros(features_MK.shape[1]) if start_K is None else start_K
    trials_M = passes_M + fails_M

    def objective(weights_K: Numbers) -> float:
        logits_M = features_MK @ weights_K
        likelihood = passes_M @ logits_M - trials_M @ np.logaddexp(0, logits_M)
        return float(likelihood - 0.5 * weights_K @ weights_K)

    def curvature(rates_M: Numbers) -> Matrix:
        weighed_MK = features_MK * (trials_M * rates_M * (1 - rates_M))[:, None]
        return np.eye(len(weights_K)) + features_MK.T @ weighed_MK

    best = objective(weights_K)
    for _ in range(NEWTON_STEPS):
        rates_M = _logistic(features_MK @ weights_K)
        slope_K = features_MK.T @ (passes_M - trials_M * rates_M) - weights_K
        step_K = np.linalg.solve(curvature(rates_M), slope_K)
        size = 1.0
        while (found := objective(weights_K + size * step_K)) < best and size > 1e-4:
            size /= 2
        if found <= best:
            break
        gained, best, weights_K = found - best, found, weights_K + size * step_K
        if gained < TOLERANCE:
            break
    rates_M = _logistic(features_MK @ weights_K)
    factor_KK: Matrix = np.linalg.cholesky(curvature(rates_M)).astype(np.float64, copy=False)
    return Posterior(weights_K, factor_KK, best - float(np.log(np.diag(factor_KK)).sum()))


@dataclass(frozen=True)
class Fit:
    """A posterior over the features of a heat kernel at one time."""

    posterior: Posterior
    time: float


def fit_time(vectors_MK: Matrix, kernel: HeatKernel, passes_M: Numbers, fails_M: Numbers) -> Fit:
    """The posterior at the time with the largest evidence. vectors_MK: eigenvectors at the played tasks."""
    fits: list[Fit] = []
    start: Numbers | None = None
    for time in TIMES:
        posterior = laplace(vectors_MK * kernel.damping(time), passes_M, fails_M, start)
        start = posterior.mean_K
        fits.append(Fit(posterior, time))
    return max(fits, key=lambda fit: fit.posterior.evidence)


class Graph:
    """A heat kernel over standardised features."""

    def __init__(self, points_ND: Matrix, *, landmarks: int = LANDMARKS) -> None:
        self.points_ND = points_ND
        self.centre_D = points_ND.mean(0)
        spread_D = points_ND.std(0)
        self.scale_D = np.where(spread_D > 1e-9, 1 / np.maximum(spread_D, 1e-9), 0.0)
        self.kernel = HeatKernel.fit(
            self._standard(points_ND), landmarks, neighbours=NEIGHBOURS, eigenpairs=EIGENPAIRS
        )

    def eigenvectors(self, points_ND: Matrix) -> Matrix:
        """Values of the kernel's eigenvectors at points, shape (N, K)."""
        return self.kernel.eigenvectors(self._standard(points_ND))

    def _standard(self, points_ND: Matrix) -> Matrix:
        return np.clip((points_ND - self.centre_D) * self.scale_D, -FURTHEST, FURTHEST)


class GraphForecaster(Outcomes):
    """A Gaussian process over the tasks' features, for tasks that are not drawn again."""

    kind = "flgp"

    def __init__(
        self, forget: float, group_size: int, features: Callable[[Task], NDArray[np.float64]]
    ) -> None:
        """features(task): a vector, always of the same width."""
        super().__init__(forget, group_size)
        self.features = features
        # The tasks drawn lately, and those with outcomes.
        self.points: dict[str, Numbers] = {}
        self.played: dict[str, Numbers] = {}
        self.graph: Graph | None = None
        self.fit: Fit | None = None
        self.new_points = 0
        self.new_groups = 0

    def forecast(self, tasks: Sequence[Task]) -> list[Forecast]:
        points_ND = np.stack([self._point(task) for task in tasks])
        self._build()
        self._refit()
        known = [key_of(task) in self.tasks for task in tasks]
        if self.graph is None or self.fit is None:
            mean, strength = self.spread.mean, self.spread.strength
            value = learning_value(strength * mean, strength * (1 - mean), self.group_size)
            return [Forecast(mean, value, one) for one in known]
        damping_K = self.graph.kernel.damping(self.fit.time)
        logits_N, variances_N = self.fit.posterior.logits(
            self.graph.eigenvectors(points_ND) * damping_K
        )
        rates_N, values_N = expectations(logits_N, variances_N, self.group_size)
        return [
            Forecast(rate, value, one)
            for rate, value, one in zip(rates_N.tolist(), values_N.tolist(), known, strict=True)
        ]

    def learn(self, task: Task, outcome: TaskOutcome) -> None:
        newer = outcome.version > self.version
        super().learn(task, outcome)
        self.played[key_of(task)] = self._point(task)
        self.new_groups += 1
        if newer:
            self.new_groups = REFIT_GROUPS
            self.played = {key: self.played[key] for key in self.tasks}

    def state(self, draws: int) -> ChoiceState:
        return replace(
            super().state(draws),
            points=_text([] if self.graph is None else list(self.graph.points_ND)),
            played=_text(list(self.played.values())),
        )

    def restore(self, state: ChoiceState) -> None:
        super().restore(state)
        if state.played:
            rows = _matrix(state.played, len(self.tasks))
            self.played = dict(zip(self.tasks, rows, strict=True))
            width = rows.shape[1]
            if state.points:
                points_ND = _matrix(state.points, -1, width)
                self.points = {f"{n}": row for n, row in enumerate(points_ND)}
                self.graph = Graph(points_ND)
        self.new_groups = REFIT_GROUPS

    def _point(self, task: Task) -> Numbers:
        """Features of a task, which becomes a point of the graph to come."""
        key = key_of(task)
        known = self.points.get(key)
        if known is None:
            # As a checkpoint keeps it, so that a run that goes on computes with the same numbers.
            known = self.points[key] = self.features(task).astype(np.float32).astype(np.float64)
            self.new_points += 1
            if len(self.points) > MOST_POINTS:
                del self.points[next(iter(self.points))]
        return known

    def _build(self) -> None:
        """Build the graph when it is due."""
        built = 0 if self.graph is None else len(self.graph.points_ND)
        due = FIRST_POINTS if self.graph is None else min(built, MOST_POINTS)
        if self.new_points < due:
            return
        self.graph = Graph(np.stack(list(self.points.values())))
        self.new_points = 0
        self.new_groups = REFIT_GROUPS

    def _refit(self) -> None:
        """Fit the posterior when it is due."""
        if self.graph is None or not self.tasks or self.new_groups < REFIT_GROUPS:
            return
        counts = [c.at(self.version, self.forget) for c in self.tasks.values()]
        self.fit = fit_time(
            self.graph.eigenvectors(np.stack([self.played[key] for key in self.tasks])),
            self.graph.kernel,
            np.array([c.passes for c in counts]),
            np.array([c.fails for c in counts]),
        )
        self.new_groups = 0


def expectations(
    logits_N: Numbers, variances_N: Numbers, group_size: int
) -> tuple[Numbers, Numbers]:
    """E[p] and E[p (1 - p) (1 - p^G - (1 - p)^G)] for logits of p that are Gaussian, each of shape (N)."""
    nodes = logits_N[:, None] + np.sqrt(variances_N)[:, None] * _NODES
    p = _logistic(nodes)
    weights = _WEIGHTS / _WEIGHTS.sum()
    value = p * (1 - p) * (1 - p**group_size - (1 - p) ** group_size)
    return p @ weights, value @ weights


def _logistic(logits: Matrix) -> Matrix:
    """Pass rates of logits, of any size: exp of a large one would overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def _text(rows: Sequence[Numbers]) -> str:
    return b64encode(np.stack(rows).astype("<f4").tobytes()).decode() if rows else ""


def _matrix(text: str, count: int, width: int = -1) -> Matrix:
    numbers = np.frombuffer(b64decode(text), "<f4").astype(np.float64)
    return numbers.reshape(count, width)
