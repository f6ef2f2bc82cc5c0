"""How much of their prompts engines found in their prefix caches, by the engines' own counts."""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.engine import Completion


@dataclass(frozen=True)
class CacheUse:
    """Counts over turns; they add up.

    opening_tokens, opening_cached: the prompts of segments' first turns, and what of them the engine had,
    from other members of the group. turns, turns_cached: later turns at the engine and with the weights of
    the turn before, and those of them whose whole history, but an incomplete last block, was in the cache.
    history_tokens, history_cached: the same in tokens.
    """

    opening_tokens: int = 0
    opening_cached: int = 0
    turns: int = 0
    turns_cached: int = 0
    history_tokens: int = 0
    history_cached: int = 0

    def __add__(self, other: "CacheUse") -> "CacheUse":
        return CacheUse(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def metrics(self) -> dict[str, float]:
        """Shares, where there was anything: `cache/opening`, `cache/turns`, `cache/history`."""
        shares = {
            "opening": (self.opening_cached, self.opening_tokens),
            "turns": (self.turns_cached, self.turns),
            "history": (self.history_cached, self.history_tokens),
        }
        return {f"cache/{name}": part / whole for name, (part, whole) in shares.items() if whole}


def opening_use(prompt: Sequence[int], completion: Completion) -> CacheUse:
    """The first turn of a segment."""
    return CacheUse(opening_tokens=len(prompt), opening_cached=completion.cached_tokens)


def later_use(history: int, completion: Completion) -> CacheUse:
    """A later turn. history: tokens of the prompt that the engine had computed by the turn before's end."""
    cached = min(history, completion.cached_tokens)
    return CacheUse(
        turns=1,
        turns_cached=int(cached >= history - history % completion.cache_block),
        history_tokens=history,
        history_cached=cached,
    )
