"""Reading a sensor over a link that drops: a call can fail and has to be made again.

    user: read k7    assistant: read(sensor=k7)    tool: error: busy    assistant: read(sensor=k7)
    tool: 318        assistant: 318

How often the link drops is part of the task, so a task is equally hard whoever plays it. Asking for
another sensor does not use up the failures of the right one.
"""

import random
from collections import Counter
from typing import Any

from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import Message
from envs.tool import ToolError, tool

ROOMS = "abcdefghjkmnpqrst"


class SensorsConfig(EnvConfig):
    """A read fails 0 to `most_failures` times before it works."""

    most_failures: int = 3


class Sensors(Env):
    """Read one sensor through transient failures and report its value."""

    name = "sensors"
    config_type = SensorsConfig
    config: SensorsConfig

    def sample(self, rng: random.Random) -> dict[str, Any]:
        sensor = f"{rng.choice(ROOMS)}{rng.randint(1, 9)}"
        return {
            "sensor": sensor,
            "value": rng.randint(100, 999),
            "failures": rng.randint(0, self.config.most_failures),
        }

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.reads: Counter[str] = Counter()
        return [Message("user", f"read {task.data['sensor']}")]

    @tool(read_only=True)
    async def read(self, sensor: str) -> str:
        """the value of a sensor"""
        if sensor != self.task["sensor"]:
            raise ToolError(f"no sensor {sensor!r}")
        self.reads[sensor] += 1
        if self.reads[sensor] <= self.task["failures"]:
            raise ToolError("busy")
        return str(self.task["value"])

    async def score(self) -> dict[str, float]:
        return {"solved": float((self.answer or "").strip() == str(self.task["value"]))}

    def expert(self, task: Task) -> Expert:
        result = "error: busy"
        while result == "error: busy":
            result = (yield call("read", sensor=task.data["sensor"]))[0]
        yield say(result)
