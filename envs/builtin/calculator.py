"""Arithmetic with tools: the policy picks the operation, copies the numbers, reports the result.

user: 47 times 86 ?      assistant: multiply(a=47, b=86)      tool: 4042      assistant: 4042

Harder tasks go on with the result: `47 times 86 then minus 5 ?`
"""

import random
from typing import Any

from pydantic import Field

from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import tool

WORDS = {"add": ("plus", "added to"), "subtract": ("minus", "less"), "multiply": ("times", "by")}


class CalculatorConfig(EnvConfig):
    """Numbers go from 0 to `largest`; a task has as many steps as its difficulty."""

    largest: int = 99
    difficulty: int = Field(default=1, ge=1, le=4)


class Calculator(Env):
    """A calculation, one tool call for each of its steps."""

    name = "calculator"
    reward_names = ("solved",)
    config_type = CalculatorConfig
    config: CalculatorConfig
    difficulties = 4

    def sample(self, rng: random.Random) -> JsonObject:
        level, largest = self.config.difficulty, self.config.largest
        if level == 1:
            op = rng.choice(sorted(WORDS))
            a, b = rng.randint(0, largest), rng.randint(0, largest)
            return {"op": op, "word": rng.choice(WORDS[op]), "a": a, "b": b}
        ops = [rng.choice(sorted(WORDS)) for _ in range(level)]
        steps = [[op, rng.choice(WORDS[op]), rng.randint(0, largest)] for op in ops]
        return {"difficulty": level, "a": rng.randint(0, largest), "steps": steps}

    async def reset(self, task: Task) -> list[Message]:
        value = task.data["a"]
        for op, _, b in _steps(task.data):
            value = {"add": value + b, "subtract": value - b, "multiply": value * b}[op]
        self.expected = value
        self.calls = 0
        asked = " then ".join(f"{word} {b}" for _, word, b in _steps(task.data))
        return [Message("user", f"{task.data['a']} {asked} ?")]

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
        result = task.data["a"]
        for op, _, b in _steps(task.data):
            result = (yield call(op, a=result, b=b))[0]
        yield say(result)


def _steps(data: JsonObject) -> list[list[Any]]:
    """Each step's operation, its word, and its number; a task of difficulty 1 is its only step itself."""
    return data["steps"] if "steps" in data else [[data["op"], data["word"], data["b"]]]
