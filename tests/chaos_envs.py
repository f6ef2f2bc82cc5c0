"""Environments that go wrong in one way each; otherwise they are the calculator."""

import asyncio
import ctypes
import random
import time
from pathlib import Path

from envs.builtin.calculator import Calculator, CalculatorConfig
from envs.env import Task
from envs.message import Message
from envs.tool import tool


def _unlucky(task: Task, one_in: int) -> bool:
    return int(task.id, 16) % one_in == 0


class ResetRaises(Calculator):
    """Half of its tasks cannot be set up."""

    name = "reset_raises"

    async def reset(self, task: Task) -> list[Message]:
        if _unlucky(task, 2):
            raise RuntimeError("the world is missing")
        return await super().reset(task)


class ToolHangs(Calculator):
    """Its tools never return."""

    name = "tool_hangs"

    @tool
    async def add(self, a: int, b: int) -> int:
        """a plus b"""
        await asyncio.Event().wait()
        return 0

    @tool
    def subtract(self, a: int, b: int) -> int:
        """a minus b"""
        while True:
            time.sleep(1)

    @tool
    async def multiply(self, a: int, b: int) -> int:
        """a times b"""
        raise ZeroDivisionError("inside a tool")


class Coin(Calculator):
    """It pays by chance, so that there is something to learn for a policy that can do nothing yet."""

    name = "coin"

    async def score(self) -> dict[str, float]:
        return {"solved": float(random.random() < 0.5)}


class HostExits(Calculator):
    """One task in thirteen ends the process that runs it, and every other episode in it."""

    name = "host_exits"

    async def reset(self, task: Task) -> list[Message]:
        if _unlucky(task, 13):
            ctypes.string_at(0)  # below Python, where no guard sees it
        return await super().reset(task)


class BreaksConfig(CalculatorConfig):
    """The file that says how it fails; it works while there is none, or an empty one."""

    file: str


class Breaks(Calculator):
    """Fails while a file says so: `raise` at reset, `tool` in its tools, `hang` for ever in its tools."""

    name = "breaks"
    config_type = BreaksConfig
    config: BreaksConfig

    def how(self) -> str:
        """What the file says."""
        file = Path(self.config.file)
        return file.read_text(encoding="utf-8") if file.exists() else ""

    async def reset(self, task: Task) -> list[Message]:
        if self.how() == "raise":
            raise RuntimeError("the service behind it is away")
        return await super().reset(task)

    async def act(self) -> None:
        """What each tool does first."""
        if self.how() == "tool":
            raise RuntimeError("the service behind it is away")
        if self.how() == "hang":
            await asyncio.Event().wait()

    @tool
    async def add(self, a: int, b: int) -> int:
        """a plus b"""
        await self.act()
        return a + b

    @tool
    async def subtract(self, a: int, b: int) -> int:
        """a minus b"""
        await self.act()
        return a - b

    @tool
    async def multiply(self, a: int, b: int) -> int:
        """a times b"""
        await self.act()
        return a * b
