"""Finds writing that ended in a loop: the same tokens over and over, up to the length limit.

A sample that ran into the limit in a loop earned its reward; one that was merely cut off did not
(LongCat-Flash-Thinking, arXiv 2509.18883, section 3.2.2). A pure function of token ids.
"""

from collections.abc import Sequence


def ends_in_repetition(ids: Sequence[int], *, times: int = 4, tokens: int = 16) -> bool:
    """True if the last part of `ids`, of at least `tokens` tokens, is one piece at least `times` in a row;
    the first of them may be cut. E.g. ... 7 8 9 7 8 9 7 8 9 7 8 9 with tokens = 12 -> True.

    A part of length m has the period p = m - (its longest border); borders of all prefixes of the
    reversed ids come from the failure function of Knuth, Morris and Pratt (1977), in linear time.
    """
    backwards = ids[::-1]
    border = [0] * len(backwards)
    length = 0
    for end in range(1, len(backwards)):
        while length and backwards[end] != backwards[length]:
            length = border[length - 1]
        length += backwards[end] == backwards[length]
        border[end] = length
        whole = end + 1
        if whole >= tokens and whole >= times * (whole - length):
            return True
    return False
