"""The waiting-for table of trajectories in progress: phase, since when, against its usual time, until when.

Every controller knows its own episodes and how long their phases take, and answers with such a table. The run
gathers the tables, writes them into status.json (`rl.record.status`), and names a suspect when nothing moves
any more.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rl.env_table import DeadlineConfig
from rollout.trajectory import Phase

# So many durations are remembered per phase and environment; fewer than the second say nothing of a p99.
_REMEMBERED, _ENOUGH = 1000, 20


@dataclass(frozen=True)
class Waiting:
    """One trajectory: at `at` (engine or host, "" where it has none) in `phase` for `seconds`.

    version: its policy version; None where it has none of its own. p99: of this phase in this environment,
    in seconds, once it is known. left: seconds to its deadline; then: what happens at it.
    """

    id: str
    env: str
    version: int | None
    phase: str
    at: str
    seconds: float
    p99: float | None
    left: float
    then: str

    @property
    def excess(self) -> float:
        """Seconds as a multiple of the usual longest: how suspicious the trajectory is."""
        return self.seconds / max(self.p99 or 1.0, 0.1)


@dataclass(frozen=True)
class Latency:
    """Seconds that a phase took lately; count: of how many."""

    p50: float
    p95: float
    p99: float
    count: int


@dataclass(frozen=True)
class WaitingTable:
    """The most suspicious rows, and how many trajectories there are per environment and phase in all.

    silent: controllers that did not answer. latency: how long phases take.
    """

    rows: tuple[Waiting, ...]
    counts: Mapping[tuple[str, str], int]
    silent: tuple[str, ...] = ()
    latency: Mapping[tuple[str, str], Latency] = field(default_factory=dict)


class PhaseTimes:
    """How long phases took lately, per environment."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], deque[float]] = defaultdict(
            lambda: deque(maxlen=_REMEMBERED)
        )

    def add(self, env: str, phases: Iterable[Phase]) -> None:
        """Take in the phases of an episode of `env` that has ended."""
        for phase in phases:
            self._seconds[env, phase.name].append(phase.seconds)

    def latency(self) -> dict[tuple[str, str], Latency]:
        """Latency per environment and phase, where enough durations are remembered."""
        found = {}
        for key, seconds in self._seconds.items():
            if (count := len(seconds)) >= _ENOUGH:
                ranked = sorted(seconds)
                p50, p95, p99 = (ranked[math.ceil(q * count) - 1] for q in (0.5, 0.95, 0.99))
                found[key] = Latency(p50, p95, p99, count)
        return found


def deadline(
    phase: str,
    seconds: float,
    age: float,
    deadlines: DeadlineConfig,
    *,
    episode_seconds: float,
    request_seconds: float,
    acts: int = 1,
    held: float = 0.0,
    user_left: float = 0.0,
    written: float | None = None,
) -> tuple[float, str]:
    """Seconds left to an episode that is in `phase` for `seconds` and began `age` seconds ago, and what
    happens then.

    episode_seconds, request_seconds: the limits of the whole episode and of one turn of an engine.
    acts: tool calls in this phase, which have a deadline each. held: for how long a frozen model may hold a
    judge. user_left: how long the episode may still have waited for its user when this phase began. written:
    since when an engine writes the present turn, in seconds; None while it waits for one.
    """
    limits = {
        "reset": (deadlines.reset_seconds, "failed: env_fault"),
        "tool": (deadlines.tool_seconds * acts, "failed: env_fault"),
        "reply": (deadlines.tool_seconds, "failed: env_fault"),
        "agent": (deadlines.agent_seconds, "failed: env_fault"),
        "score": (deadlines.score_seconds, "failed: env_fault"),
        "close": (deadlines.close_seconds, "closed without waiting"),
        "user": (user_left, "failed: user_fault"),
        "judge": (deadlines.score_seconds + held, "failed: judge_fault"),
    }
    if phase in ("user", "judge"):  # the episode's own clock stands still, or has ended
        return limits[phase][0] - seconds, limits[phase][1]
    ways = [(episode_seconds - age, "failed: timeout")]
    if phase in limits:
        limit, then = limits[phase]
        ways.append((limit - seconds, then))
    if written is not None:
        ways.append((request_seconds - written, "failed: engine_fault"))
    return min(ways)


def worst(rows: Iterable[Waiting], count: int) -> list[Waiting]:
    """The `count` most suspicious, the first of them the suspect."""
    return sorted(rows, key=lambda row: (-row.excess, row.id))[:count]


def merge(tables: Sequence[WaitingTable], count: int) -> WaitingTable:
    """Several controllers' tables as one."""
    counts: Counter[tuple[str, str]] = Counter()
    for table in tables:
        counts.update(table.counts)
    rows = worst((row for table in tables for row in table.rows), count)
    return WaitingTable(tuple(rows), counts, latency=_together([t.latency for t in tables]))


def _together(
    parts: Sequence[Mapping[tuple[str, str], Latency]],
) -> dict[tuple[str, str], Latency]:
    """Means weighted by count: controllers take groups of all environments alike, so theirs differ little."""
    by_key: dict[tuple[str, str], list[Latency]] = defaultdict(list)
    for part in parts:
        for key, one in part.items():
            by_key[key].append(one)
    found = {}
    for key, several in by_key.items():
        count = sum(one.count for one in several)
        p50 = sum(one.p50 * one.count for one in several) / count
        p95 = sum(one.p95 * one.count for one in several) / count
        p99 = sum(one.p99 * one.count for one in several) / count
        found[key] = Latency(p50, p95, p99, count)
    return found
