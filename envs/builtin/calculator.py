"""Arithmetic with one tool call: the policy picks the operation, copies the numbers, reports the result.

user: 47 times 86 ?      assistant: multiply(a=47, b=86)      tool: 4042      assistant: 4042
"""

import random
from typing import Any

from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import Message
from envs.tool import tool

WORDS = {"add": ("plus", "added to"), "subtract": ("minus", "less"), "multiply": ("times", "by")}


class CalculatorConfig(EnvConfig):
    """Numbers go from 0 to `largest`."""

    largest: int = 99


class Calculator(Env):
    """One calculation that takes exactly one tool call."""

    name = "calculator"
    config_type = CalculatorConfig
    config: CalculatorConfig

    def sample(self, rng: random.Random) -> dict[str, Any]:
        op = rng.choice(sorted(WORDS))
        a, b = rng.randint(0, self.config.largest), rng.randint(0, self.config.largest)
        return {"op": op, "word": rng.choice(WORDS[op]), "a": a, "b": b}

    async def reset(self, task: Task) -> list[Message]:
        a, b = task.data["a"], task.data["b"]
        self.expected = {"add": a + b, "subtract": a - b, "multiply": a * b}[task.data["op"]]
        self.calls = 0
        return [Message("user", "{a} {word} {b} ?".format(**task.data))]

    @tool(read_only=True)
    async def add(self, a: int, b: int) -> int:
        """a plus b"""
        self.calls += 1
        return a + b

    @tool(read_only=True)
    async def subtract(self, a: int, b: int) -> int:
        """a minus b"""
        self.calls += 1
        return a - b

    @tool(read_only=True)
    async def multiply(self, a: int, b: int) -> int:
        """a times b"""
        self.calls += 1
        return a * b

    async def score(self) -> dict[str, float]:
        answer = (self.answer or "").strip()
        return {"solved": float(answer == str(self.expected) and self.calls > 0)}

    def expert(self, task: Task) -> Expert:
        results = yield call(task.data["op"], a=task.data["a"], b=task.data["b"])
        yield say(results[0])
