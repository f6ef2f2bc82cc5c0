"""Figures of a judge against labels: agreement, biases, consistency, calibration. Pure functions of verdicts.

A verdict is the share of a win, or a reward, from 0 to 1; a half is half right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

# Of the normal distribution, for an interval that covers 95 %.
Z95 = 1.959964
BINS = 5


@dataclass(frozen=True)
class Seen:
    """A judge's verdicts on one row. label: what people said, 0 to 1. verdicts: of each time it was judged.

    pair: two answers were compared, and people prefer the first. longer: by how many words the chosen answer
    is longer than the rejected one; of a single answer its words. swayed: share of the comparisons in which
    both orders named the same place; None: there was no order. first: share of the answers that named the
    first place.
    """

    label: float
    verdicts: tuple[float, ...]
    pair: bool = True
    longer: int = 0
    swayed: float | None = None
    first: float | None = None


def interval(right: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: `right` of `count`, where halves may count."""
    if not count:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def credit(verdict: float, label: float) -> float:
    """1 where a verdict is on the label's side of a half, 0.5 where it is on no side."""
    if verdict == 0.5 or label == 0.5:
        return 0.5
    return float((verdict > 0.5) == (label > 0.5))


def figures(seen: Sequence[Seen]) -> dict[str, float]:
    """All figures that these verdicts give, by name."""
    first = [one.verdicts[0] for one in seen]
    right = sum(credit(v, one.label) for v, one in zip(first, seen, strict=True))
    low, high = interval(right, len(seen))
    found = {"count": float(len(seen)), "agreement": right / len(seen), "low": low, "high": high}
    found["undecided"] = sum(verdict == 0.5 for verdict in first) / len(seen)
    if swayed := [one.swayed for one in seen if one.swayed is not None]:
        found["position_bias"] = fmean(swayed)
    if first_named := [one.first for one in seen if one.first is not None]:
        found["names_first"] = fmean(first_named)
    if (bias := length_bias(seen)) is not None:
        found["length_bias"] = bias
    if again := [one.verdicts for one in seen if len(one.verdicts) > 1]:
        found["self_consistency"] = fmean(map(consistency, again))
    means = [fmean(one.verdicts) for one in seen]
    labels = [one.label for one in seen]
    found["brier"] = fmean((m - label) ** 2 for m, label in zip(means, labels, strict=True))
    found["calibration_error"] = calibration_error(means, labels)
    return found


def consistency(verdicts: Sequence[float]) -> float:
    """Share of pairs of verdicts on one row that are on the same side of a half."""
    sides = [(v > 0.5) - (v < 0.5) for v in verdicts]
    pairs = [(i, j) for i in range(len(sides)) for j in range(i)]
    return fmean(float(sides[i] == sides[j]) for i, j in pairs)


def length_bias(seen: Sequence[Seen]) -> float | None:
    """How much more the judge favours length than people do; None where it cannot be said.

    Of pairs: the share that it gives to the longer answer, less the share that people give it, -1 to 1. Of
    single answers: the correlation of its verdicts with their words, less that of the labels.
    """
    if all(one.pair for one in seen):
        if not (unlike := [one for one in seen if one.longer]):
            return None
        said = fmean(o.verdicts[0] if o.longer > 0 else 1 - o.verdicts[0] for o in unlike)
        return said - fmean(float(one.longer > 0) for one in unlike)
    words = [float(one.longer) for one in seen]
    by_judge = correlation(words, [one.verdicts[0] for one in seen])
    by_label = correlation(words, [one.label for one in seen])
    return None if by_judge is None or by_label is None else by_judge - by_label


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's; None where one of them does not vary."""
    if len(xs) < 2 or not (spread := pstdev(xs) * pstdev(ys)):
        return None
    mean_x, mean_y = fmean(xs), fmean(ys)
    return fmean((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def calibration_error(said: Sequence[float], labels: Sequence[float]) -> float:
    """Mean distance of what is said from what is so, over bins of what is said, weighted by their size.

    Guo et al. 2017 (arXiv 1706.04599), equation 3, with five bins.
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for one, label in zip(said, labels, strict=True):
        bins.setdefault(min(BINS - 1, int(one * BINS)), []).append((one, label))
    total = 0.0
    for inside in bins.values():
        total += abs(sum(one - label for one, label in inside))
    return total / len(said)


def wins(better: int, worse: int) -> float:
    """Probability of at least `better` of the rows on which two judges part, were both equally good.

    The exact one-sided sign test (McNemar): below 1 - confidence the first one wins.
    """
    count = better + worse
    return sum(math.comb(count, k) for k in range(better, count + 1)) / 2**count
