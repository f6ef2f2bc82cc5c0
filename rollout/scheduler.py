"""The scheduler: what a run does next, as one function of where it stands.

Consumes a `Backlog` (versions, and the work on each), engines, trajectories in progress. Produces a
`Decision`: how the window slides, who begins anew, how many groups begin on which version, which engines
change version and which trajectories move. `rollout.window` holds the rules, `rollout.placement` the
algorithm; no clock, no Ray, no vLLM here, so that the live run and the simulator are the same scheduler.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rollout.placement import EngineState, InProgress, Placement, place
from rollout.window import (
    Rules,
    RunAhead,
    Window,
    admits,
    groups_to_admit,
    slide,
    window_limit,
)

Trigger = Literal["step", "cache", "timer"]
# A full cache stays full for a while: it asks for a rebalance once in this share of the period.
PRESSURE_PAUSE = 0.2


@dataclass(frozen=True)
class Limits:
    """Sizes of a run.

    batch_groups: groups of one learner step. group_size: trajectories of a group. target: trajectories
    begun and not yet trained on that admission aims at (DORA's RBS, the over-dispatch). max_active: in
    progress at once, whatever the target: more than the engines can play would wait in line on a version
    that grows old meanwhile, where a group that begins later begins on a newer one. engine_limit:
    trajectories per engine. slack, expected_tokens: see `placement.place`. cache_pressure: share of an
    engine's cache in use that asks for a rebalance. period_seconds: longest time without one. max_groups:
    played at once, whatever the target.
    """

    batch_groups: int
    group_size: int
    target: int
    engine_limit: int
    slack: int = 1
    expected_tokens: int = 0
    cache_pressure: float = 0.95
    period_seconds: float = 60.0
    max_groups: int = 2**31
    max_active: int = 2**31


@dataclass(frozen=True)
class Backlog:
    """Where a run stands, per version: trajectories in progress (`active`), groups in flight (`groups`) and
    finished groups that are not yet trained on (`buffered`, those of a step in progress included).

    heldout: trajectories of an evaluation. They hold their version as others do, and take no room from them.
    """

    window: Window
    learner_version: int
    active: Mapping[int, int]
    groups: Mapping[int, int]
    buffered: Mapping[int, int]
    heldout: Mapping[int, int] = field(default_factory=dict[int, int])

    @property
    def in_progress(self) -> dict[int, int]:
        """All trajectories in progress."""
        return dict(Counter(self.active) + Counter(self.heldout))


@dataclass(frozen=True)
class Decision:
    """The scheduler's decision, carried out in this order: give up `evicted` versions, slide the window,
    move, admit.

    admit: groups to begin per version.
    """

    window: Window
    evicted: tuple[int, ...]
    placement: Placement
    admit: Mapping[int, int]


def trigger(
    limits: Limits, *, step_ended: bool, cache_usage: float, idle_seconds: float
) -> Trigger | None:
    """Say why a rebalance is due, if it is (DORA, section 4.3).

    A learner step has ended, an engine's cache is about to overflow, or the last rebalance is long ago.
    cache_usage: share of the fullest engine's cache. idle_seconds: since the last rebalance.
    """
    if step_ended:
        return "step"
    pause = PRESSURE_PAUSE * limits.period_seconds
    if cache_usage >= limits.cache_pressure and idle_seconds >= pause:
        return "cache"
    return "timer" if idle_seconds >= limits.period_seconds else None


def admission(backlog: Backlog, rules: Rules, limits: Limits) -> dict[int, int]:
    """Groups to begin, below the target, all on the newest version."""
    in_flight = sum(backlog.groups.values())
    buffered = sum(backlog.buffered.values())
    active = sum(backlog.active.values())
    below_target = limits.target - active - buffered * limits.group_size
    to_begin = max(0, min(below_target, limits.max_active - active))
    room = groups_to_admit(
        RunAhead(
            version=backlog.window.newest,
            learner_version=backlog.learner_version,
            in_flight=in_flight,
            buffered=buffered,
            batch_groups=limits.batch_groups,
            max_staleness=rules.max_staleness,
            max_in_flight=min(limits.max_groups, in_flight + to_begin // limits.group_size),
        )
    )
    if not room or not admits(backlog.window):
        return {}
    return {backlog.window.newest: room}


def decide(
    backlog: Backlog,
    engines: Sequence[EngineState],
    trajectories: Sequence[InProgress],
    rules: Rules,
    limits: Limits,
) -> Decision:
    """One rebalance. engines: those that generate now, whatever their layout.

    trajectories: those whose place is known; the rest of `backlog.active` has none yet.
    """
    limit = window_limit(rules, len(engines))
    window, evicted = slide(backlog.window, backlog.in_progress, rules, limit)
    gone = set(evicted)
    active = {v: n for v, n in backlog.active.items() if v not in gone}
    groups = {v: n for v, n in backlog.groups.items() if v not in gone}
    heldout = {v: n for v, n in backlog.heldout.items() if v not in gone}
    after = replace(backlog, window=window, active=active, groups=groups, heldout=heldout)
    admit = admission(after, rules, limits)
    staying = [one for one in trajectories if one.version not in gone] if gone else trajectories
    if rules.in_place:
        staying = [replace(one, version=window.newest) for one in staying]
    # About to begin: what is admitted now, and what was and is on its way to a controller.
    incoming = Counter({v: count * limits.group_size for v, count in admit.items()})
    incoming.update(after.in_progress)
    incoming.subtract(one.version for one in staying)
    placement = place(
        engines,
        staying,
        incoming,
        newest=window.newest,
        slack=limits.slack,
        expected_tokens=limits.expected_tokens,
    )
    return Decision(window, evicted, placement, admit)
