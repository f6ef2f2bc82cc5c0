"""Token ids as objects that contexts share: one that came over a wire takes 8 bytes a token, and not 36."""

from collections.abc import Iterable

_known: dict[int, int] = {}


def shared(ids: Iterable[int]) -> tuple[int, ...]:
    """The same ids. The table of them grows to the tokenizer's vocabulary at most."""
    ids = tuple(ids)
    return tuple(map(_known.setdefault, ids, ids))
