"""Judges what a soak found: figures in, a pass/fail table and deadlines out. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import tomli_w
from rich.console import Group
from rich.table import Table
from rich.text import Text

from envs.message import JsonObject

# What a host's own machinery (Ray's connections and threads, Python's allocator) may come and go by.
SLACK_FILES, SLACK_THREADS, SLACK_TASKS = 8, 8, 2
SLACK_MIB, SLACK_KIB_PER_EPISODE = 8.0, 4.0
# No deadline is suggested below this: a machine pauses for longer than a quick environment takes.
LEAST_DEADLINE_SECONDS = 1.0
PHASES = ("reset", "tool", "reply", "score", "close")


@dataclass(frozen=True)
class Plan:
    """The plan of a soak. Each round is of `episodes`, all of them open at once.

    rounds: undisturbed ones, which are measured; seconds: as many as begin in that time instead, where above
    0. A round before them warms up, and a round after them is disturbed. latency_ms: mean time that a turn
    of the policy takes. cancel: share of the disturbed round's episodes that are cancelled in the middle of
    a call. kills: host processes that are killed in it.
    """

    episodes: int = 512
    rounds: int = 2
    seconds: float = 0.0
    latency_ms: float = 20.0
    cancel: float = 0.05
    kills: int = 1
    hosts: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Played:
    """One episode that was begun. outcome: `completed`, `cancelled`, or the stop reason of a fault.

    acts: its calls to the environment. seconds: of each, as the episode saw them, by phase.
    """

    id: str
    outcome: str
    full: bool
    rewards: Mapping[str, float]
    fault: str
    seconds: Mapping[str, tuple[float, ...]]

    @property
    def acts(self) -> int:
        return sum(len(one) for one in self.seconds.values())


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of the durations of one phase, in ms."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Left:
    """Leftovers of the hosts when no episode was in progress any more: of each kind, the host with most.

    sessions, environments and tool_threads are what there was; the others what there was more than after the
    warm-up. orphans: processes that outlived a host that was killed.
    """

    sessions: int = 0
    environments: int = 0
    tool_threads: int = 0
    tasks: int = 0
    processes: int = 0
    orphans: int = 0
    files: int = 0
    threads: int = 0
    temporary: int = 0
    memory_mib: float = 0.0


@dataclass(frozen=True)
class Figures:
    """One environment's soak.

    most_at_once: episodes open at the same moment. at_host: how long acts took in the host, where their
    deadlines are; seen: how long episodes waited for them, the way there and back included. calm: what was
    left by the undisturbed rounds (of `calm_episodes` per host), after_all: by all of them. played_again:
    episodes begun anew after their host was killed. left_by_killed: temporary paths of killed hosts, which
    could not remove them. close_faults: closes that raised, or took too long.
    """

    env: str
    plan: Plan
    most_at_once: int
    outcomes: Mapping[str, int]
    begun: int
    not_full: int
    complaint: str
    calls_per_second: float
    at_host: Mapping[str, Percentiles]
    seen: Mapping[str, Percentiles]
    calm: Left
    calm_episodes: int
    after_all: Left
    killed: int
    played_again: int
    hosts_back: bool
    left_by_killed: int
    close_faults: int

    def as_json(self, factor: float) -> JsonObject:
        """All of it, with the checks."""
        found = checks(self)
        return {
            **asdict(self),
            "checks": [asdict(one) for one in found],
            "deadlines": deadlines(self, factor),
            "passed": all(one.passed for one in found),
        }


@dataclass(frozen=True)
class Check:
    """One line of the result table."""

    name: str
    passed: bool
    detail: str


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Compute percentiles of at least one duration."""
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1e3 * ordered[math.ceil(share * len(ordered)) - 1], 3)

    return Percentiles(len(ordered), at(0.5), at(0.95), at(0.99), at(1.0))


def checks(f: Figures) -> list[Check]:
    """Judge the figures, line by line."""
    return [*_of_the_episodes(f), *_of_what_is_left(f)]


def _of_the_episodes(f: Figures) -> list[Check]:
    """Judge how many episodes there were, and how they ended."""
    cancelled = f.outcomes.get("cancelled", 0)
    lost = f.outcomes.get("host_fault", 0)
    completed = f.outcomes.get("completed", 0)
    faults = f.begun - completed - cancelled - (lost if f.killed else 0)
    counted = ", ".join(f"{n} {name}" for name, n in sorted(f.outcomes.items()))
    return [
        Check("episodes at once", f.most_at_once >= f.plan.episodes, f"{f.most_at_once}"),
        Check(
            "every episode accounted for",
            sum(f.outcomes.values()) == f.begun and faults == 0,
            f"{f.begun} begun: {counted}" + (f"; first fault: {f.complaint}" if faults else ""),
        ),
        Check(
            "expert's score full",
            f.not_full == 0 and completed > 0,
            f"{completed - f.not_full} of {completed}"
            + (f"; first: {f.complaint}" if f.not_full else ""),
        ),
    ]


def _of_what_is_left(f: Figures) -> list[Check]:
    """Judge what the episodes have left behind, undisturbed and at the end."""
    room = SLACK_MIB + SLACK_KIB_PER_EPISODE * f.calm_episodes / 1024
    calm, end = f.calm, f.after_all
    return [
        _none(
            "episodes closed",
            max(calm.sessions, end.sessions)
            + max(calm.environments, end.environments)
            + f.close_faults,
            f"{end.sessions} open, {end.environments} instances still in memory, "
            f"{f.close_faults} closes failed",
        ),
        _none(
            "processes ended",
            max(calm.processes, end.processes) + end.orphans,
            f"{max(calm.processes, end.processes)} more, {end.orphans} outlived a killed host",
        ),
        Check(
            "threads ended",
            max(calm.tool_threads, end.tool_threads) == 0
            and max(calm.threads, end.threads) <= SLACK_THREADS
            and max(calm.tasks, end.tasks) <= SLACK_TASKS,
            f"{end.tool_threads} in a tool, {end.threads:+} in all, {end.tasks:+} asyncio tasks",
        ),
        Check(
            "files and sockets closed",
            max(calm.files, end.files) <= SLACK_FILES,
            f"{calm.files:+} undisturbed, {end.files:+} at the end (up to {SLACK_FILES} are the host's)",
        ),
        _none(
            "temporary files removed",
            max(calm.temporary, end.temporary),
            f"{max(calm.temporary, end.temporary)} left"
            + (f"; {f.left_by_killed} more by killed hosts" if f.left_by_killed else ""),
        ),
        Check(
            "memory given back",
            calm.memory_mib <= room,
            f"{calm.memory_mib:+.1f} MiB in {f.calm_episodes} episodes of a host (up to {room:.0f})",
        ),
        Check(
            "hosts came back",
            f.hosts_back,
            f"{f.killed} killed, {f.played_again} episodes played again",
        ),
    ]


def _none(name: str, count: int, detail: str) -> Check:
    return Check(name, count == 0, detail)


def deadlines(f: Figures, factor: float = 10.0) -> dict[str, float]:
    """Deadlines in seconds for `[env.deadlines]`: p99 in the host times `factor`, two digits, upwards."""
    worst = {
        "reset_seconds": ("reset",),
        "tool_seconds": ("tool", "reply"),
        "score_seconds": ("score",),
        "close_seconds": ("close",),
    }
    found: dict[str, float] = {}
    for key, phases in worst.items():
        known = [f.at_host[phase].p99 for phase in phases if phase in f.at_host]
        if known:
            found[key] = _upwards(max(LEAST_DEADLINE_SECONDS, factor * max(known) / 1e3))
    return found


def _upwards(seconds: float) -> float:
    step = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return round(math.ceil(round(seconds / step, 6)) * step, 6)


def deadlines_toml(all_figures: Sequence[Figures], factor: float) -> str:
    """`[[env]]` tables that a run's config can take over."""
    tables = [{"id": f.env, "deadlines": deadlines(f, factor)} for f in all_figures]
    said = "".join(
        f"# {f.env}: p99 of {sum(p.count for p in f.at_host.values())} acts, "
        f"{f.plan.episodes} episodes at once on {f.plan.hosts} hosts, times {factor:g}\n"
        for f in all_figures
    )
    return said + tomli_w.dumps({"env": tables})


def result_table(f: Figures, factor: float = 10.0) -> Group:
    """Render verdict, checks and times for a terminal."""
    plan, found = f.plan, checks(f)
    passed = all(one.passed for one in found)
    verdict = Text("passed" if passed else "FAILED", style="bold green" if passed else "bold red")
    title = Text.assemble(
        (f.env, "bold"),
        f": {plan.episodes} episodes at once on {plan.hosts} hosts, a turn every {plan.latency_ms:g} ms, "
        f"{f.calls_per_second:,.0f} calls/s: ",
        verdict,
    )
    lines = Table(show_edge=False, pad_edge=False)
    for column in ("check", " ", "found"):
        lines.add_column(column, overflow="fold")
    for one in found:
        mark = Text("pass", style="green") if one.passed else Text("FAIL", style="bold red")
        lines.add_row(one.name, mark, Text(one.detail))
    return Group(title, "", lines, "", _times(f, factor))


def _times(f: Figures, factor: float) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("ms")
    for column in ("calls", "p50", "p95", "p99", "max", "seen p50", "p95", "p99", "deadline"):
        table.add_column(column, justify="right")
    suggested = deadlines(f, factor)
    for phase in PHASES:
        here = f.at_host.get(phase)
        if here is None:
            continue
        there = f.seen.get(phase)
        # What an episode waits for at its end is not the environment's close.
        waited = (there.p50, there.p95, there.p99) if there and phase != "close" else ()
        key = "tool_seconds" if phase == "reply" else f"{phase}_seconds"
        table.add_row(
            phase,
            f"{here.count}",
            *(f"{v:.1f}" for v in (here.p50, here.p95, here.p99, here.max)),
            *(f"{v:.1f}" for v in waited or ()),
            *([""] * (0 if waited else 3)),
            f"{suggested[key]:g} s",
        )
    return table
