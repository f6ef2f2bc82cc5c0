"""The ledger: every trajectory is in exactly one state, and the counts say so at any time.

For every environment: dispatched = trained + filtered(reason) + stale(reason) + failed(reason) +
cancelled + in flight + buffered. A remainder is an error that names the trajectories.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Open = Literal["in_flight", "buffered"]
Closed = Literal["trained", "filtered", "stale", "failed", "cancelled"]
_NEXT: dict[Open, tuple[str, ...]] = {
    "in_flight": ("buffered", "filtered", "stale", "failed", "cancelled"),
    "buffered": ("trained", "filtered", "stale", "failed", "cancelled"),
}


class LedgerError(Exception):
    """The books do not balance; the message names trajectories."""


@dataclass
class _Entry:
    env: str
    state: Open


class Ledger:
    """Counts by environment and outcome; entries of trajectories that are not yet at their end."""

    def __init__(self) -> None:
        self.dispatched: Counter[str] = Counter()
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.entries: dict[str, _Entry] = {}

    def dispatch(self, env: str, ids: Iterable[str]) -> None:
        """Book trajectories that begin."""
        for id in ids:
            if id in self.entries:
                raise LedgerError(f"trajectory {id} was dispatched twice")
            self.dispatched[env] += 1
            self.entries[id] = _Entry(env, "in_flight")

    def buffer(self, ids: Iterable[str]) -> None:
        """Book trajectories that are finished and wait for the learner."""
        for id in ids:
            self._leave(id, "buffered").state = "buffered"

    def close(self, ids: Sequence[str], outcome: Closed, reason: str = "") -> None:
        """Book trajectories at their end, with a reason where the outcome has several."""
        for id in ids:
            entry = self._leave(id, outcome)
            del self.entries[id]
            self.outcomes[entry.env][f"{outcome}:{reason}" if reason else outcome] += 1

    def open_ids(self, state: Open) -> list[str]:
        """Trajectories in a state that is no end."""
        return [id for id, entry in self.entries.items() if entry.state == state]

    def counts(self) -> dict[str, dict[str, int]]:
        """Per environment: dispatched, in_flight, buffered, and every outcome there was."""
        table: dict[str, dict[str, int]] = {}
        states = Counter((entry.env, entry.state) for entry in self.entries.values())
        for env, dispatched in self.dispatched.items():
            table[env] = {
                "dispatched": dispatched,
                "in_flight": states[env, "in_flight"],
                "buffered": states[env, "buffered"],
                **dict(sorted(self.outcomes[env].items())),
            }
        return table

    def check(self, in_flight: set[str], buffered: set[str]) -> None:
        """Compare with what the run really holds: ids being played, ids in the queue.

        Raises LedgerError naming the trajectories that are in one and not in the other.
        """
        both: tuple[tuple[Open, set[str]], ...] = (
            ("in_flight", in_flight),
            ("buffered", buffered),
        )
        for state, held in both:
            booked = set(self.open_ids(state))
            if booked != held:
                wrong = sorted(booked ^ held)
                raise LedgerError(
                    f"{len(wrong)} trajectories are {state} in the ledger or in the run, not in both: "
                    f"{', '.join(wrong[:5])}"
                )
        for env, counts in self.counts().items():
            total = sum(n for name, n in counts.items() if name != "dispatched")
            if total != counts["dispatched"]:
                raise LedgerError(
                    f"environment {env}: {counts['dispatched']} dispatched, {total} accounted for"
                )

    def _leave(self, id: str, target: str) -> _Entry:
        entry = self.entries.get(id)
        if entry is None:
            raise LedgerError(
                f"trajectory {id} cannot become {target}: it is at its end or unknown"
            )
        if target not in _NEXT[entry.state]:
            raise LedgerError(f"trajectory {id} is {entry.state} and cannot become {target}")
        return entry
