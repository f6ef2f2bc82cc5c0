"""The workload of a simulated run: drawn from distributions with a seed, or a finished run's trace."""

import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rl.config_file import ConfigError
from rl.simulator.config import ToolSpec, WorkloadSpec
from rl.simulator.run_trace import Trace, read_trace
from rl.simulator.trajectory_plan import GroupPlan, Plan

# The 99th percentile of a standard normal distribution.
_Z99 = 2.3263478740408408


def plans(workload: WorkloadSpec, seed: int) -> Iterator[GroupPlan]:
    """Endless groups, the same for the same seed in every mode. Raises ConfigError on a bad trace."""
    if workload.trace is not None:
        trace = load_trace(workload.trace)
        if trace.group_size != workload.group_size:
            raise ConfigError(
                f"trace {workload.trace}: its groups are of {trace.group_size} trajectories, "
                f"workload.group_size is {workload.group_size}"
            )
        return trace.plans(seed)
    return _drawn(workload, seed)


@cache
def load_trace(folder: str) -> Trace:
    """A run folder's trace, read once. Raises ConfigError."""
    return read_trace(Path(folder))


def _drawn(workload: WorkloadSpec, seed: int) -> Iterator[GroupPlan]:
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
