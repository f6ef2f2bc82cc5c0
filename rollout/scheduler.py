"""The scheduler: what a run does next, as one function of where it stands.

Consumes a `View` (versions, engines, trajectories in progress), produces a `Decision`: how the window
slides, who begins anew, how many groups begin on which version, which engines change version and which
trajectories move. `rollout.window` holds the rules, `rollout.placement` the algorithm; no clock, no Ray,
no vLLM here, so that the live run and the simulator are the same scheduler.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rollout.placement import EngineState, InProgress, Placement, place
from rollout.window import (
    Rules,
    RunAhead,
    Window,
    admits,
    groups_to_admit,
    room_until_due,
    slide,
    window_limit,
)

Trigger = Literal["step", "cache", "timer"]


@dataclass(frozen=True)
class Limits:
    """Sizes of a run, in groups where not said otherwise.

    batch_groups: of one learner step. max_in_flight: groups being played at once (DORA's RBS, the
    over-dispatch). group_size: trajectories of a group. engine_first, engine_later: trajectories per
    engine before the first rebalance of a step and after it (two-phase concurrency,
    LongCat-Flash-Thinking-2601, arXiv 2601.16725, section 3.2). legacy_fill: share of an older version's
    engine that new groups may fill; 0 keeps new work on the newest version, and staleness low.
    slack: see `placement.place`. cache_pressure: share of an engine's cache in use that asks for a
    rebalance. period_seconds: longest time without one.
    """

    batch_groups: int
    max_in_flight: int
    group_size: int
    engine_first: int
    engine_later: int
    legacy_fill: float = 0.0
    slack: int = 1
    cache_pressure: float = 0.9
    period_seconds: float = 60.0


@dataclass(frozen=True)
class View:
    """Where a run stands.

    engines: those that generate now, whatever their layout. groups: in flight, buffered: finished and not
    yet trained on, both per version. rebalanced: whether this step has had a rebalance.
    """

    window: Window
    learner_version: int
    engines: tuple[EngineState, ...]
    trajectories: tuple[InProgress, ...]
    groups: Mapping[int, int]
    buffered: Mapping[int, int]
    rebalanced: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do, in this order: give up `evicted` versions, slide the window, move, admit.

    admit: groups to begin per version.
    """

    window: Window
    evicted: tuple[int, ...]
    placement: Placement
    admit: Mapping[int, int]


def trigger(
    limits: Limits, *, step_ended: bool, cache_usage: float, idle_seconds: float
) -> Trigger | None:
    """Why a rebalance is due, if it is (DORA, section 4.3): a learner step has ended, an engine's cache is
    about to overflow, or the last rebalance is long ago."""
    if step_ended:
        return "step"
    if cache_usage >= limits.cache_pressure:
        return "cache"
    return "timer" if idle_seconds >= limits.period_seconds else None


def admission(view: View, rules: Rules, limits: Limits) -> dict[int, int]:
    """Groups to begin: below the target, the newest version first; then older versions' idle engines."""
    in_flight = sum(view.groups.values())
    room = groups_to_admit(
        RunAhead(
            version=view.window.newest,
            learner_version=view.learner_version,
            in_flight=in_flight,
            buffered=sum(view.buffered.values()),
            batch_groups=limits.batch_groups,
            max_staleness=rules.max_staleness,
            max_in_flight=limits.max_in_flight,
        )
    )
    if not room or not admits(view.window):
        return {}
    fill = _legacy_fill(view, rules, limits, room)
    newest = room - sum(fill.values())
    return ({view.window.newest: newest} if newest else {}) | fill


def _legacy_fill(view: View, rules: Rules, limits: Limits, room: int) -> dict[int, int]:
    """Groups for idle places on engines of older versions; never on one that the window waits for."""
    if not limits.legacy_fill:
        return {}
    held = Counter(one.version for one in view.trajectories)
    places: Counter[int] = Counter()
    for engine in view.engines:
        if engine.version is not None:
            places[engine.version] += int(engine.limit * limits.legacy_fill)
    work = Counter(view.groups)
    work.update(view.buffered)
    fill: dict[int, int] = {}
    for version in reversed(view.window.versions[1:-1]):
        free = max(0, places[version] - held[version]) // limits.group_size
        due = room_until_due(version, view.learner_version, work, limits.batch_groups, rules)
        if taken := min(free, due, room - sum(fill.values())):
            fill[version] = taken
            work[version] += taken
    return fill


def decide(view: View, rules: Rules, limits: Limits) -> Decision:
    """One rebalance."""
    limit = window_limit(rules, len(view.engines))
    counts = Counter(one.version for one in view.trajectories)
    window, evicted = slide(view.window, counts, rules, limit)
    staying = tuple(one for one in view.trajectories if one.version not in evicted)
    if rules.in_place:
        staying = tuple(replace(one, version=window.newest) for one in staying)
    groups = {v: n for v, n in view.groups.items() if v not in evicted}
    per_engine = limits.engine_later if view.rebalanced else limits.engine_first
    engines = tuple(replace(engine, limit=per_engine) for engine in view.engines)
    after = replace(view, window=window, trajectories=staying, groups=groups, engines=engines)
    admit = admission(after, rules, limits)
    incoming = {version: count * limits.group_size for version, count in admit.items()}
    placement = place(engines, staying, incoming, newest=window.newest, slack=limits.slack)
    return Decision(window, evicted, placement, admit)
