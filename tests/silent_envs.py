"""Environments whose episodes end with a tool call: nothing is said."""

import random
from typing import Any

from envs.env import Env, Task, call
from envs.message import Message
from envs.tool import tool


class Valve(Env):
    """Nothing is said: the tool ends it."""

    name = "valve"
    reward_names = ("solved",)

    def sample(self, rng: random.Random) -> dict[str, Any]:
        return {"valve": rng.randint(1, 10**9)}

    async def reset(self, task: Task) -> list[Message]:
        return [Message("user", "turn it")]

    @tool
    async def turn(self) -> str:
        """turn it"""
        self.done = True
        return "turned"

    async def score(self) -> dict[str, float]:
        return {"solved": float(self.done)}

    def expert(self, task: Task):
        yield call("turn")


class Unsaid(Valve):
    """Has no expert that tells how it ends."""

    name = "unsaid"
    expert = Env.expert
