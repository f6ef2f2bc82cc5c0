"""A small environment for the tests of the commands: importing it in another process takes little."""

import random

from envs.env import Env, Task
from envs.message import Message, ToolCall
from envs.session import HostFault
from envs.tool import tool


class Kitchen(Env):
    """Stirs; what it says and gives for it are the class's to change."""

    name = "kitchen"
    said = "stirred\nonce"
    reward = 1.0
    opening = "stir"

    def sample(self, rng: random.Random):
        return {"pot": rng.randint(1, 10**9)}

    async def reset(self, task: Task) -> list[Message]:
        if self.opening == "fault":
            raise RuntimeError("no stove")
        if self.opening == "away":
            raise HostFault("no gas")
        return [Message("user", self.opening)]

    @tool
    async def stir(self, times: int) -> str:
        """stir the pot"""
        return self.said

    async def score(self) -> dict[str, float]:
        return {"solved": self.reward}

    def expert(self, task: Task):
        yield Message("assistant", "now", (ToolCall("stir", {"times": 2}),))
        yield Message("assistant", "served")


class Unaided(Kitchen):
    """Nobody shows how."""

    expert = Env.expert
