"""Prefixes that samples have in common, computed once: a group's members begin with the same prompt.

A token's hidden state depends on the tokens before it and on nothing else, so samples that begin alike have
it in common. `share` makes a tree of the samples of a micro-batch and gives its nodes as the stream's tokens;
every layer but attention works on these, and attention on the rows of a `trainer.cpu.attention.Layout`, which
are whole sequences. It is exact: gradients add up where samples meet. `trainer.micro_batches` brings samples
together that have much in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Tokens = Sequence[int]


@dataclass(frozen=True)
class SharedTokens:
    """The tree of some samples, e.g. of (5, 6, 7) and (5, 6, 8). paths: for each sample the stream's token at
    each of its places, here (0, 1, 2) and (0, 1, 3). new: how many of its tokens no earlier sample has, here
    (3, 1). One without any is the beginning of an earlier sample."""

    paths: list[list[int]]
    new: list[int]


def share(samples: Sequence[Tokens]) -> SharedTokens:
    """The tree of samples, which have to come longest first. The stream's tokens are in the order in which
    the samples bring them."""
    children: dict[tuple[int, int], int] = {}
    shared = SharedTokens([], [])
    for tokens in samples:
        before, node, path = len(children), -1, []
        for token in tokens:
            node = children.setdefault((node, token), len(children))
            path.append(node)
        shared.paths.append(path)
        shared.new.append(len(children) - before)
    return shared


def unshared(lengths: Sequence[int]) -> SharedTokens:
    """The samples end to end, whatever they have in common."""
    starts = accumulate(lengths, initial=0)
    paths = [list(range(start, start + n)) for start, n in zip(starts, lengths, strict=False)]
    return SharedTokens(paths, list(lengths))
