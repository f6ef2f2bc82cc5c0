"""The version window and admission: pure functions of plain data, for the live run and a simulator alike.

A *group* is admitted when its trajectories may start. One rule covers the modes: with `max_staleness`
0 it is synchronous (exactly one batch per policy version), above 0 rollouts run ahead of the learner.
"""

from dataclasses import dataclass


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


def least_loaded(loads: dict[str, int], preferred: str | None) -> str:
    """The engine for a request: the one that holds its earlier turns unless it is clearly busier.

    loads: requests in progress per engine. A move costs a prefill, so it has to be worth two requests.
    """
    best = min(loads, key=lambda name: (loads[name], name))
    if preferred in loads and loads[preferred] <= loads[best] + 2:
        return preferred
    return best
