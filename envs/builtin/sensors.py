"""Reading a sensor over a link that drops: a call can fail and has to be made again.

    user: read k7    assistant: read(sensor=k7)    tool: error: busy    assistant: read(sensor=k7)
    tool: 318        assistant: 318

Harder tasks ask for the largest or the smallest of several. How often the link drops is part of the
task, which is so equally hard whoever plays it. Asking for another sensor does not use up the failures of
the right one.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import Field

from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

ROOMS = "abcdefghjkmnpqrst"
# What is asked for of several sensors; of one, either is its value.
ASKS: dict[str, Callable[[Iterable[int]], int]] = {"largest": max, "smallest": min}


class SensorsConfig(EnvConfig):
    """A read fails 0 to `most_failures` times before it works. Difficulty: 1, 2 or 4 sensors."""

    most_failures: int = 3
    difficulty: int = Field(default=1, ge=1, le=3)


class Sensors(Env):
    """Read sensors through transient failures and report a value."""

    name = "sensors"
    reward_names = ("solved",)
    config_type = SensorsConfig
    config: SensorsConfig
    difficulties = 3

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        if level > 1:
            rooms = rng.sample(ROOMS, {2: 2, 3: 4}[level])
            values = rng.sample(range(100, 1000), len(rooms))
            return {
                "difficulty": level,
                "ask": rng.choice(sorted(ASKS)),
                "sensors": [
                    [f"{room}{rng.randint(1, 9)}", value, rng.randint(0, self.config.most_failures)]
                    for room, value in zip(rooms, values, strict=True)
                ],
            }
        sensor = f"{rng.choice(ROOMS)}{rng.randint(1, 9)}"
        return {
            "sensor": sensor,
            "value": rng.randint(100, 999),
            "failures": rng.randint(0, self.config.most_failures),
        }

    async def reset(self, task: Task) -> list[Message]:
        self.sensors = {name: (value, failures) for name, value, failures in _sensors(task.data)}
        self.expected = ASKS[task.data.get("ask", "largest")](
            value for value, _ in self.sensors.values()
        )
        self.reads: Counter[str] = Counter()
        return [Message("user", " ".join([task.data.get("ask", "read"), *self.sensors]))]

    @tool(read_only=True)
    async def read(self, sensor: str) -> str:
        """the value of a sensor"""
        if sensor not in self.sensors:
            raise ToolError(f"no sensor {sensor!r}")
        value, failures = self.sensors[sensor]
        self.reads[sensor] += 1
        if self.reads[sensor] <= failures:
            raise ToolError("busy")
        return str(value)

    async def score(self) -> dict[str, float]:
        return {"solved": float((self.answer or "").strip() == str(self.expected))}

    def expert(self, task: Task) -> Expert:
        found: list[int] = []
        for sensor, _, _ in _sensors(task.data):
            result = "error: busy"
            while result.startswith("error:"):
                result = (yield call("read", sensor=sensor))[0]
            found.append(int(result))
        yield say(str(ASKS[task.data.get("ask", "largest")](found)))


def _sensors(data: JsonObject) -> list[list[Any]]:
    """Name, value and failures of each sensor; a task of difficulty 1 has one."""
    if "sensors" in data:
        return data["sensors"]
    return [[data["sensor"], data["value"], data["failures"]]]
