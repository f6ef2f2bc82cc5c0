"""The calculator with slow tools."""

import statistics

import pytest

from envs.builtin.slow_calculator import SlowCalculator, SlowCalculatorConfig
from envs.env import Task
from envs.session import demonstrate

QUICK = SlowCalculatorConfig(median_seconds=1e-4, p99_seconds=1e-3)
TASK = Task("slow_calculator", {"op": "add", "word": "plus", "a": 2, "b": 3})


async def test_the_expert_solves_it():
    _, _, rewards = await demonstrate(SlowCalculator(QUICK), TASK)
    assert rewards == {"solved": 1.0}


async def test_calls_take_as_long_as_asked_for_and_episodes_of_a_task_differ(monkeypatch):
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("envs.builtin.slow_calculator.asyncio.sleep", sleep)
    for _ in range(4000):
        env = SlowCalculator(SlowCalculatorConfig())
        await env.reset(TASK)
        await env.wait()
    assert statistics.median(waits) == pytest.approx(0.2, rel=0.1)
    assert sorted(waits)[int(0.99 * len(waits))] == pytest.approx(4.0, rel=0.25)
    assert len(set(waits)) == len(waits)
