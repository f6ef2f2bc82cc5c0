"""The calculator, with tools that take their time: most calls are quick, a few are very slow.

The world of agents that search, compile or ask a service, in which a synchronous learner waits for the
slowest call of a batch.
"""

import asyncio
import math
import random
from collections import Counter

from pydantic import PositiveFloat

from envs.builtin.calculator import Calculator, CalculatorConfig
from envs.env import EnvConfig, Task
from envs.message import Message
from envs.tool import tool

# The 99th percentile of a standard normal distribution.
_Z99 = 2.3263478740408408
# How often each task was played in this process: with one host, its k-th episode is as slow in
# every run.
_PLAYED: Counter[str] = Counter()


class SlowCalculatorConfig(CalculatorConfig):
    """Seconds of a tool call: lognormal with this median and 99th percentile."""

    median_seconds: PositiveFloat = 0.2
    p99_seconds: PositiveFloat = 4.0


class SlowCalculator(Calculator):
    """One calculation, one slow tool call. Episodes of the same task differ in how long they take."""

    name = "slow_calculator"
    config_type = SlowCalculatorConfig

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        slow = SlowCalculatorConfig.model_validate(config.model_dump())
        self.median = math.log(slow.median_seconds)
        self.sigma = math.log(slow.p99_seconds / slow.median_seconds) / _Z99

    async def reset(self, task: Task) -> list[Message]:
        self.rng = random.Random(f"{task.id}/{_PLAYED[task.id]}")
        _PLAYED[task.id] += 1
        return await super().reset(task)

    async def wait(self) -> None:
        """Take as long as a call takes."""
        await asyncio.sleep(self.rng.lognormvariate(self.median, self.sigma))

    @tool(read_only=True)
    async def add(self, a: int, b: int) -> int:
        """a plus b"""
        await self.wait()
        self.calls += 1
        return a + b

    @tool(read_only=True)
    async def subtract(self, a: int, b: int) -> int:
        """a minus b"""
        await self.wait()
        self.calls += 1
        return a - b

    @tool(read_only=True)
    async def multiply(self, a: int, b: int) -> int:
        """a times b"""
        await self.wait()
        self.calls += 1
        return a * b
