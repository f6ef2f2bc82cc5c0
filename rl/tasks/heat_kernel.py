"""The heat kernel of a graph over points and landmarks, truncated to its slowest modes, linear in the points.

Fast graph Laplacian Gaussian process (arXiv 2405.13342): landmarks are centres of k-means; each point walks
to its nearest landmarks and from there to a point, which gives the symmetric transition matrix W = Z
diag(Z's column sums)^-1 Z^T; its eigenpairs come from a matrix of landmarks by landmarks. A point that was
not there when the graph was built is placed by its landmarks alone (Nyström).

Shapes: N points, D features, S landmarks, R neighbours, K eigenpairs. Cost: N (S D + R² + R K) + S³.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]

# k-means sees so many points per landmark at most: more move the centres by little.
POINTS_PER_LANDMARK = 20
KMEANS_ROUNDS = 10
CHUNK = 4096
# Modes of a smaller eigenvalue of W are noise of the arithmetic.
SMALLEST_EIGENVALUE = 1e-9


@dataclass(frozen=True)
class HeatKernel:
    """Eigenpairs of the Laplacian I - W over landmarks. `spread`: 4 ε² of the weights exp(-d² / 4 ε²).

    decay_K: eigenvalues of I - W, ascending, the first one 0. modes_SK: what a point's weights on landmarks
    are multiplied with for its value in each eigenvector, whose mean square over the points is 1.
    """

    landmarks_SD: Matrix
    spread: float
    neighbours: int
    decay_K: Numbers
    modes_SK: Matrix

    @staticmethod
    def fit(
        points_ND: Matrix,
        landmarks: int,
        *,
        neighbours: int = 3,
        eigenpairs: int = 64,
        seed: int = 0,
    ) -> "HeatKernel":
        """Build the graph over points, with that many landmarks and eigenpairs at most."""
        rng = np.random.default_rng(seed)
        centres_SD = _kmeans(points_ND, landmarks, rng)
        return HeatKernel.over(points_ND, centres_SD, neighbours=neighbours, eigenpairs=eigenpairs)

    @staticmethod
    def over(
        points_ND: Matrix, landmarks_SD: Matrix, *, neighbours: int, eigenpairs: int
    ) -> "HeatKernel":
        """Build the graph over points with these landmarks."""
        neighbours = min(neighbours, len(landmarks_SD))
        near = [_nearest(chunk, landmarks_SD, neighbours) for chunk in _chunks(points_ND)]
        index_NR = np.concatenate([index for index, _ in near])
        distance_NR = np.concatenate([distance for _, distance in near])
        farthest_N: Numbers = distance_NR.max(1)
        spread = max(float(np.median(farthest_N)), 1e-12)
        weight_NR = _weights(distance_NR, spread)
        size = len(landmarks_SD)
        sums_S = np.bincount(index_NR.ravel(), weight_NR.ravel(), size)
        # Z^T Z, one entry for each two neighbours of a point.
        pair = index_NR[:, :, None] * size + index_NR[:, None, :]
        both = weight_NR[:, :, None] * weight_NR[:, None, :]
        gram_SS = np.bincount(pair.ravel(), both.ravel(), size * size).reshape(size, size)
        # A landmark that is no point's neighbour has no part in the graph.
        root_S = np.where(sums_S > 0, 1 / np.sqrt(np.maximum(sums_S, 1e-300)), 0.0)
        values_S, vectors_SS = np.linalg.eigh(root_S[:, None] * gram_SS * root_S)
        kept = np.argsort(values_S)[::-1][:eigenpairs]
        kept = kept[values_S[kept] > SMALLEST_EIGENVALUE]
        values_K = np.minimum(values_S[kept], 1.0)
        modes_SK = root_S[:, None] * vectors_SS[:, kept] / np.sqrt(values_K)
        scaled_SK = modes_SK * np.sqrt(len(points_ND))
        return HeatKernel(landmarks_SD, spread, neighbours, 1 - values_K, scaled_SK)

    def eigenvectors(self, points_ND: Matrix) -> Matrix:
        """Values of the eigenvectors at points, shape (N, K); of other points than the graph's by Nyström."""
        return np.concatenate([self._at(chunk) for chunk in _chunks(points_ND)])

    def features(self, points_ND: Matrix, time: float) -> Matrix:
        """Features of which products are the heat kernel exp(-time (I - W)), truncated; shape (N, K)."""
        return self.eigenvectors(points_ND) * self.damping(time)

    def damping(self, time: float) -> Numbers:
        """Factors that `features` multiplies the eigenvectors with, shape (K)."""
        return np.exp(-0.5 * time * self.decay_K)

    def _at(self, points_ND: Matrix) -> Matrix:
        index_NR, distance_NR = _nearest(points_ND, self.landmarks_SD, self.neighbours)
        weight_NR = _weights(distance_NR, self.spread)
        return np.einsum("nr,nrk->nk", weight_NR, self.modes_SK[index_NR])


def _chunks(points_ND: Matrix) -> Iterator[Matrix]:
    for start in range(0, max(1, len(points_ND)), CHUNK):
        yield points_ND[start : start + CHUNK]


def _distances(points_ND: Matrix, landmarks_SD: Matrix) -> Matrix:
    """Squared distances, shape (N, S)."""
    squares_S = (landmarks_SD**2).sum(1)
    products_NS = points_ND @ landmarks_SD.T
    return np.maximum((points_ND**2).sum(1)[:, None] + squares_S - 2 * products_NS, 0.0)


def _nearest(points_ND: Matrix, landmarks_SD: Matrix, count: int) -> tuple[Indices, Matrix]:
    """The nearest landmarks of each point and their squared distances, both of shape (N, R)."""
    distance_NS = _distances(points_ND, landmarks_SD)
    index_NR = np.argpartition(distance_NS, count - 1, axis=1)[:, :count]
    return index_NR, np.take_along_axis(distance_NS, index_NR, 1)


def _weights(distance_NR: Matrix, spread: float) -> Matrix:
    """Weights of neighbours, which sum to 1 for each point."""
    weight_NR = np.exp(-(distance_NR - distance_NR.min(1, keepdims=True)) / spread)
    return weight_NR / weight_NR.sum(1, keepdims=True)


def _kmeans(points_ND: Matrix, count: int, rng: np.random.Generator) -> Matrix:
    """Centres of Lloyd's algorithm from random points; a centre of no point stays where it was."""
    most = POINTS_PER_LANDMARK * count
    some_MD = (
        points_ND if len(points_ND) <= most else points_ND[rng.permutation(len(points_ND))[:most]]
    )
    distinct = np.unique(some_MD, axis=0)
    if len(distinct) <= count:
        return distinct
    centres_SD = distinct[rng.permutation(len(distinct))[:count]]
    for _ in range(KMEANS_ROUNDS):
        own_M = np.concatenate([_distances(c, centres_SD).argmin(1) for c in _chunks(some_MD)])
        order = np.argsort(own_M, kind="stable")
        counts_S = np.bincount(own_M, minlength=count)
        filled = counts_S > 0
        starts = (np.cumsum(counts_S) - counts_S)[filled]
        sums = np.add.reduceat(some_MD[order], starts, axis=0)
        centres_SD = centres_SD.copy()
        centres_SD[filled] = sums / counts_S[filled][:, None]
    return centres_SD
