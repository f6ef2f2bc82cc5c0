"""The version window and admission: pure functions of plain data, for the live run and a simulator alike.

The *window* is the versions that trajectories in progress may be on, at most K (DORA, arXiv 2604.26256,
section 3.1). A trajectory stays on its version to its end; new ones begin on the newest. All modes are
settings of the same rules, `Rules`:

    mode       live versions   staleness   weights change
    sync       1               0           when the version has drained
    one_step   1               1           when the version has drained
    in_flight  1               s           under running requests
    dora       K               K           never under a trajectory: engines take another version
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Eviction = Literal["block", "discard"]


@dataclass(frozen=True)
class Rules:
    """Limits that a mode sets. live: versions at once (K). max_staleness: the learner's version minus a
    sample's.

    in_place: new weights replace the only version under its running requests. eviction: a full window
    waits until its oldest version has drained (`block`, DORA), or gives up what is left of it
    (`discard`, LongCat-Flash-Thinking, arXiv 2509.18883, section 3.1).
    """

    live: int
    max_staleness: int
    in_place: bool = False
    eviction: Eviction = "block"


@dataclass(frozen=True)
class Window:
    """Live versions, oldest first. pending: published, and waiting for a place."""

    versions: tuple[int, ...]
    pending: int | None = None

    @property
    def newest(self) -> int:
        """The version that new trajectories begin on."""
        return self.versions[-1]


def window_limit(rules: Rules, engines: int) -> int:
    """Live versions there can be: each needs an engine."""
    return min(rules.live, engines)


def publish(window: Window, version: int) -> Window:
    """The learner has made `version`."""
    return replace(window, pending=version)


def slide(
    window: Window, in_progress: Mapping[int, int], rules: Rules, limit: int
) -> tuple[Window, tuple[int, ...]]:
    """Let the pending version in if there is a place. Returns the window and the versions given up.

    in_progress: trajectories per version, those in tools included. A version is given up only by
    `discard`; its trajectories have to begin anew on the newest.
    """
    if window.pending is None:
        return window, ()
    versions = (*window.versions, window.pending)
    if rules.in_place:
        return Window((window.pending,)), ()
    while len(versions) > limit and not in_progress.get(versions[0], 0):
        versions = versions[1:]
    if len(versions) <= limit:
        return Window(versions), ()
    if rules.eviction == "block":
        return window, ()
    surplus = len(versions) - limit
    return Window(versions[surplus:]), tuple(v for v in versions[:surplus] if in_progress.get(v, 0))


def may_step(
    learner_version: int, remaining: Mapping[int, int], batch_groups: int, rules: Rules
) -> bool:
    """True if the learner may take a step that leaves `remaining` groups per version for later ones.

    Under `block` nothing may become too old to be trained on, so the learner waits for stragglers: of the
    groups up to version v there may be no more than the steps before v is too old can take (earliest
    deadline first). The batch has to hold the oldest finished groups.
    """
    if rules.eviction == "discard" or rules.in_place:
        return True
    due = 0
    for version in sorted(remaining):
        due += remaining[version]
        if due > (version + rules.max_staleness - learner_version) * batch_groups:
            return False
    return True


def admits(window: Window) -> bool:
    """True if trajectories may begin on the newest version: not while it is the one that has to drain."""
    return window.pending is None or len(window.versions) > 1


@dataclass(frozen=True)
class RunAhead:
    """Where a run stands, in groups.

    version: what the engines serve. in_flight: admitted, not finished. buffered: finished, not yet
    trained on. batch_groups: groups of one learner step.
    """

    version: int
    learner_version: int
    in_flight: int
    buffered: int
    batch_groups: int
    max_staleness: int
    max_in_flight: int


def groups_to_admit(run: RunAhead) -> int:
    """How many groups may start now.

    A group admitted now is trained on at the latest when everything admitted before it has been: with
    g groups ahead of it, g // batch_groups steps later. So at most (max_staleness + 1) batches may be
    on their way, less the steps by which the engines are behind the learner (the bound of AReaL,
    arXiv 2505.24298, equation 3, counted from the present instead of the start of the run).
    """
    behind = run.learner_version - run.version
    allowed = (run.max_staleness + 1 - behind) * run.batch_groups
    room = min(allowed, run.max_in_flight + run.buffered) - run.in_flight - run.buffered
    return max(0, room)


def staleness(learner_version: int, versions: tuple[int, ...]) -> int:
    """Learner's version minus the oldest version that wrote a token of the sample."""
    return learner_version - min(versions)
