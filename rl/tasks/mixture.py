"""Which environment begins the next group: asked-for weights, breakers, quotas, and who holds how much.

Groups are shared out by `weight` times `over_sample`, by the smooth weighted round robin of nginx: any prefix
is as close to the shares as whole groups allow. An environment that may not begin now (its breaker is open,
its instances are used up) is passed over, and its turns go to the others. One of which much is filtered, or
comes late, fills its share of the batches by an `over_sample` above 1 (LongCat-Flash-Thinking-2601,
arXiv 2601.16725, section 3.3.3).

Of what is in flight every environment has half its share reserved. So slow environments, whose groups stay
long, cannot take the others' room, and fast ones not theirs.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

# Of an environment's share of what is in flight, what no other may take.
RESERVED = 0.5


@dataclass(frozen=True)
class Quota:
    """The share that was asked for one environment. most_groups: in flight at once; None: no bound of its
    own."""

    weight: float
    over_sample: float = 1.0
    most_groups: int | None = None


class Mixture:
    """Shares groups out over environments."""

    def __init__(self, quotas: Mapping[str, Quota]) -> None:
        self.quotas = dict(quotas)
        self.credit = dict.fromkeys(self.quotas, 0.0)

    def asked(self) -> dict[str, float]:
        """The asked-for share of each environment in what is trained on."""
        total = sum(quota.weight for quota in self.quotas.values())
        return {label: quota.weight / total for label, quota in self.quotas.items()}

    def next(
        self, allowed: Collection[str], in_flight: Mapping[str, int] | None = None, room: int = 1
    ) -> str | None:
        """The environment of the next group; None where none may begin.

        allowed: those whose breaker admits a group. in_flight: groups of each. room: groups that may begin
        now, this one included.
        """
        busy = in_flight or {}
        able = [label for label in self.quotas if label in allowed and self._below(label, busy)]
        able = self._within_shares(able, busy, room)
        if not able:
            return None
        rates = {label: self._rate(label) for label in able}
        for label, rate in rates.items():
            self.credit[label] += rate
        chosen = max(able, key=lambda label: self.credit[label])
        self.credit[chosen] -= sum(rates.values())
        return chosen

    def _rate(self, label: str) -> float:
        return self.quotas[label].weight * self.quotas[label].over_sample

    def _below(self, label: str, busy: Mapping[str, int]) -> bool:
        most = self.quotas[label].most_groups
        return most is None or busy.get(label, 0) < most

    def _within_shares(
        self, able: Collection[str], busy: Mapping[str, int], room: int
    ) -> list[str]:
        """Those that may take one more place: of their own reserve, or of the places that are shared."""
        places = sum(busy.values()) + room
        total = sum(map(self._rate, able))
        reserve = {
            label: math.floor(RESERVED * places * self._rate(label) / total) for label in able
        }
        # Reserves of those that may begin are kept free for them.
        kept = sum(max(0, own - busy.get(label, 0)) for label, own in reserve.items())
        shared = room - kept
        return [label for label in able if busy.get(label, 0) < reserve[label] or shared > 0]
