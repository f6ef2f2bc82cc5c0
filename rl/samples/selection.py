"""SelectionBias bias: who is trained on, against who was dispatched and who was dropped.

Dropping stragglers, filtering and staleness bounds choose among trajectories, and mostly against the long
and the hard ones. Counted since the start of the run: over one step, long trajectories would be compared
with short ones that began after them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rl.samples.group import MemberReport

_DROPPED = ("filtered", "stale", "failed")


@dataclass
class _Sum:
    count: int = 0
    tokens: int = 0
    turns: int = 0
    reward: float = 0.0
    judged: int = 0

    def add(self, member: MemberReport) -> None:
        self.count += 1
        self.tokens += member.num_tokens
        self.turns += member.num_turns
        if member.judged:
            self.reward += member.reward
            self.judged += 1


class SelectionBias:
    """Mean length, turns and reward of those dispatched, trained and dropped, per environment and in all."""

    def __init__(self) -> None:
        self.dispatched: dict[str, int] = defaultdict(int)
        self._sums: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
        self._open: dict[str, tuple[str, MemberReport]] = {}

    def dispatch(self, env: str, count: int) -> None:
        """So many trajectories begin."""
        for name in (env, "all"):
            self.dispatched[name] += count

    def played(self, env: str, members: Sequence[MemberReport]) -> None:
        """Note trajectories at their end; what becomes of them is said later, by `close`."""
        for member in members:
            self._open[member.id] = (env, member)
            self._add(env, "played", member)

    def close(self, ids: Iterable[str], outcome: str) -> None:
        """The ledger's outcome of these. Those that were given up before their end have no length."""
        for id in ids:
            if id in self._open:
                env, member = self._open.pop(id)
                if outcome == "trained" or outcome in _DROPPED:
                    self._add(env, "trained" if outcome == "trained" else "dropped", member)

    def metrics(self) -> dict[str, float]:
        """`selection/<env>/<played|trained|dropped>/<trajectories|tokens|turns|reward>`, and how many were
        dispatched."""
        values: dict[str, float] = {}
        for env, count in sorted(self.dispatched.items()):
            values[f"selection/{env}/dispatched/trajectories"] = float(count)
        for (env, fate), total in sorted(self._sums.items()):
            key = f"selection/{env}/{fate}"
            values[f"{key}/trajectories"] = float(total.count)
            values[f"{key}/tokens"] = total.tokens / total.count
            values[f"{key}/turns"] = total.turns / total.count
            if total.judged:
                values[f"{key}/reward"] = total.reward / total.judged
        return values

    def _add(self, env: str, fate: str, member: MemberReport) -> None:
        for name in (env, "all"):
            self._sums[name, fate].add(member)
