"""Normalises advantages over a batch, or over each environment of it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from math import fsum

from trainer.advantage import all_equal, deviation
from trainer.sample import TrainSample


def normalised(samples: Sequence[TrainSample], *, by_env: bool) -> list[TrainSample]:
    """The batch with (A - mean) / std as advantages, mean and population's std over the policy tokens of the
    batch or, with `by_env`, of the sample's environment; 0 where all of these are equal."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[sample.env if by_env else ""].append(index)
    found = list(samples)
    for indices in groups.values():
        values = [a for i in indices for a in compress(samples[i].advantages, samples[i].loss_mask)]
        if not values:
            continue
        mean = fsum(values) / len(values)
        std = deviation(fsum((a - mean) ** 2 for a in values) / len(values))
        level = all_equal(values)
        for i in indices:
            rows = zip(samples[i].advantages, samples[i].loss_mask, strict=True)
            changed = tuple((0.0 if level else (a - mean) / std) if m else a for a, m in rows)
            found[i] = replace(samples[i], advantages=changed)
    return found
