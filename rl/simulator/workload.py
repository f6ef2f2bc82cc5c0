"""What a simulated run plays: trajectories as numbers of tokens and seconds, drawn with a seed."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from rl.simulator.config import ToolSpec, WorkloadSpec

# The 99th percentile of a standard normal distribution.
_Z99 = 2.3263478740408408


@dataclass(frozen=True)
class Plan:
    """One trajectory to come: tokens written per turn, and seconds of the tool after each but the last."""

    prompt_tokens: int
    turns: tuple[int, ...]
    tool_seconds: tuple[float, ...]
    tool_tokens: int

    @property
    def tokens(self) -> int:
        """Of the whole trajectory."""
        return self.prompt_tokens + sum(self.turns) + self.tool_tokens * len(self.tool_seconds)


@dataclass(frozen=True)
class GroupPlan:
    """The trajectories of one task. filtered: whether it gives no gradient."""

    members: tuple[Plan, ...]
    filtered: bool


def plans(workload: WorkloadSpec, seed: int) -> Iterator[GroupPlan]:
    """Endless groups, the same for the same seed in every mode."""
    rng = random.Random(seed)
    while True:
        members = tuple(_plan(workload, rng) for _ in range(workload.group_size))
        yield GroupPlan(members, rng.random() < workload.filtered)


def _plan(workload: WorkloadSpec, rng: random.Random) -> Plan:
    length, turns = workload.length, workload.turns
    written = tuple(
        max(1, min(length.max, round(rng.lognormvariate(math.log(length.median), length.sigma))))
        for _ in range(turns)
    )
    waits = tuple(_seconds(workload.tool, rng) for _ in range(turns - 1))
    return Plan(workload.prompt_tokens, written, waits, workload.tool_tokens)


def _seconds(tool: ToolSpec | None, rng: random.Random) -> float:
    if tool is None:
        return 0.0
    sigma = math.log(tool.p99_seconds / tool.median_seconds) / _Z99
    return rng.lognormvariate(math.log(tool.median_seconds), sigma)
