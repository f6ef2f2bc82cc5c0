"""Environments of the comparison on Dorado's side: digits in one turn, calculations in three to five turns.

`peer/trl_side.py` asks the same prompts, offers the same tools in the same order, and rewards the same way.
"""

import asyncio
import random
from collections import Counter
from typing import cast

from envs.env import Env, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import tool
from rollout.trajectory import Trajectory

from .work import CHAIN_STEPS, Data, apply, digit_share, draw, expected, opening, slow_seconds

# How often each task was played in this process: its k-th episode is as slow in every run.
_PLAYED: Counter[str] = Counter()


def data_of(task: Task) -> Data:
    """The task's data, as `draw` made it."""
    return cast(Data, task.data)


class Digits(Env):
    """A calculation as prompt; `digits` judges the completion."""

    name = "digits"
    reward_names = ()

    def sample(self, rng: random.Random) -> JsonObject:
        return dict(draw(rng, CHAIN_STEPS[-1]))

    async def reset(self, task: Task) -> list[Message]:
        return [Message("user", opening(data_of(task)))]

    async def score(self) -> dict[str, float]:
        return {}


async def digits(task: Task, trajectory: Trajectory) -> dict[str, float]:
    """Judge a completion by its digits, whichever they are."""
    return {"digits": digit_share([id for turn in trajectory.turns for id in turn.completion_ids])}


class Chain(Env):
    """Two to four calculations, each with the result of the one before, by one tool call each."""

    name = "chain"
    reward_names = ("solved",)

    def sample(self, rng: random.Random) -> JsonObject:
        return dict(draw(rng, rng.choice(CHAIN_STEPS)))

    async def reset(self, task: Task) -> list[Message]:
        self.expected = expected(data_of(task))
        self.calls = 0
        return [Message("user", opening(data_of(task)))]

    async def wait(self) -> None:
        """Take as long as a call takes: no time."""

    @tool(read_only=True)
    async def add(self, a: int, b: int) -> int:
        """a plus b"""
        await self.wait()
        self.calls += 1
        return a + b

    @tool(read_only=True)
    async def multiply(self, a: int, b: int) -> int:
        """a times b"""
        await self.wait()
        self.calls += 1
        return a * b

    @tool(read_only=True)
    async def subtract(self, a: int, b: int) -> int:
        """a minus b"""
        await self.wait()
        self.calls += 1
        return a - b

    async def score(self) -> dict[str, float]:
        answer = (self.answer or "").strip()
        return {"solved": float(answer == str(self.expected) and self.calls > 0)}

    def expert(self, task: Task) -> Expert:
        data = data_of(task)
        value = data["a"]
        for op, _, b in data["steps"]:
            yield call(op, a=value, b=b)
            value = apply(op, value, b)
        yield say(str(value))


class SlowChain(Chain):
    """`Chain` with tools that take their time: most calls are quick, a few are slow."""

    name = "slow_chain"

    async def reset(self, task: Task) -> list[Message]:
        self.rng = random.Random(f"{task.id}/{_PLAYED[task.id]}")
        _PLAYED[task.id] += 1
        return await super().reset(task)

    async def wait(self) -> None:
        await asyncio.sleep(slow_seconds(self.rng))
