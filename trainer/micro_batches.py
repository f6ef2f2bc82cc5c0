"""Plans micro-batches: which samples are computed together, and on which rank.

`plan_micro_batches` looks at lengths alone; `plan_shared` brings samples together that begin alike, whose
common tokens are then computed once (`trainer.shared_prefixes`).
"""

from collections.abc import Sequence
from itertools import pairwise

from trainer.shared_prefixes import Tokens


def plan_micro_batches(
    lengths: Sequence[int], max_tokens: int, ranks: int = 1
) -> list[list[list[int]]]:
    """Indices of the samples of each micro-batch of each rank, e.g. [5, 3, 4, 4] at 8 -> [[[0, 1], [2, 3]]].

    Every rank gets equally many micro-batches (a rank's may be empty), for they compute in step. Longest
    first, each sample to the emptiest micro-batch. Raises ValueError where a sample is too long.
    """
    _check_fit(lengths, max_tokens)
    count = ranks * max(1, -(-sum(lengths) // (max_tokens * ranks)))
    while (bins := _spread(lengths, max_tokens, count)) is None:
        count += ranks
    return [bins[rank::ranks] for rank in range(ranks)]


def _spread(lengths: Sequence[int], max_tokens: int, count: int) -> list[list[int]] | None:
    """Greedy balance over `count` micro-batches; None where it does not fit."""
    bins: list[list[int]] = [[] for _ in range(count)]
    full = [0] * count
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        emptiest = full.index(min(full))
        full[emptiest] += lengths[index]
        if full[emptiest] > max_tokens:
            return None
        bins[emptiest].append(index)
    return bins


def plan_shared(
    samples: Sequence[Tokens], max_tokens: int, ranks: int = 1
) -> list[list[list[int]]]:
    """Indices of the samples of each micro-batch of each rank: those that have much in common together.

    Every rank gets equally many micro-batches, for they compute in step, with about as much work each. A
    micro-batch has up to max_tokens: the mean of what layers and what attention computes, so that as many
    samples fit as in `plan_micro_batches` where they have nothing in common. Raises ValueError as that does.
    """
    _check_fit([len(tokens) for tokens in samples], max_tokens)
    order = sorted(range(len(samples)), key=lambda i: (tuple(samples[i]), i), reverse=True)
    lengths = [len(samples[i]) for i in order]
    common = [_common(samples[a], samples[b]) for a, b in pairwise(order)]
    # Behind its neighbour; a sample comes behind those that it is the beginning of.
    costs = [n - c / 2 if c < n else 0.0 for n, c in zip(lengths, [0, *common], strict=False)]
    count = ranks * max(1, -(-int(sum(costs)) // (max_tokens * ranks)))
    while (chunks := _cut(lengths, costs, max_tokens, count)) is None:
        count += ranks
    batches = [[order[place] for place in chunk] for chunk in chunks]
    return [batches[rank::ranks] for rank in range(ranks)]


def _cut(
    lengths: Sequence[int], costs: Sequence[float], max_tokens: int, count: int
) -> list[range] | None:
    """`count` chunks of neighbours of about equal cost; None where they do not fit. The first of a chunk
    costs its whole length."""
    chunks: list[range] = []
    start, full, left = 0, 0.0, sum(costs)
    for place, (length, cost) in enumerate(zip(lengths, costs, strict=True)):
        last = len(chunks) >= count - 1
        enough = not last and full + cost / 2 > left / (count - len(chunks))
        if place > start and (enough or full + cost > max_tokens):
            chunks.append(range(start, place))
            left -= full
            start, full = place, 0.0
        full += length if place == start else cost
    chunks.append(range(start, len(lengths)))
    if len(chunks) > count:
        return None
    return chunks + [range(0)] * (count - len(chunks))


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens two samples begin with in common."""
    short = min(len(a), len(b))
    return next((n for n in range(short) if a[n] != b[n]), short)


def _check_fit(lengths: Sequence[int], max_tokens: int) -> None:
    if lengths and max(lengths) > max_tokens:
        raise ValueError(
            f"a sample of {max(lengths)} tokens does not fit a micro-batch of {max_tokens} "
            "(learner.micro_batch_tokens)"
        )
