"""A calculator that leaves something behind in every episode, and one that is slow to set up."""

import asyncio
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

from envs.builtin.calculator import Calculator
from envs.env import EnvConfig, Expert, Task, say
from envs.message import Message

_KEPT: list[Any] = []


class LeakyConfig(EnvConfig):
    """leak: what stays."""

    leak: Literal[
        "nothing", "file", "process", "thread", "temporary", "memory", "task", "instance", "close",
        "score",
    ] = "nothing"  # fmt: skip


class Leaky(Calculator):
    """Leaves one thing of one kind per episode."""

    name = "leaky"
    config_type = LeakyConfig
    difficulties = 0  # its calculator has four

    def sample(self, rng: Any) -> dict[str, Any]:
        return {"op": "add", "word": "plus", "a": rng.randint(0, 999), "b": rng.randint(0, 99)}

    async def reset(self, task: Task) -> list[Message]:
        opening = await super().reset(task)
        match LeakyConfig.model_validate(self.config.model_dump()).leak:
            case "file":
                os.open(os.devnull, os.O_RDONLY)
            case "process":
                subprocess.Popen(["sleep", "300"], start_new_session=True)
            case "thread":
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            case "temporary":
                tempfile.mkstemp()
            case "memory":
                _KEPT.append(bytearray(os.urandom(256 * 1024)))
            case "task":
                _KEPT.append(asyncio.create_task(asyncio.sleep(300)))
            case "instance":
                _KEPT.append(self)
        return opening

    async def score(self) -> dict[str, float]:
        if LeakyConfig.model_validate(self.config.model_dump()).leak == "score":
            return {"solved": 0.0}
        return await super().score()

    async def close(self) -> None:
        if LeakyConfig.model_validate(self.config.model_dump()).leak == "close":
            raise RuntimeError("cannot let go")


class SlowToOpen(Calculator):
    """Takes a file some time after its reset has begun, and gives it back in close."""

    name = "slow_to_open"
    file: Any = None

    async def reset(self, task: Task) -> list[Message]:
        await asyncio.sleep(0.3)
        self.file = os.open(os.devnull, os.O_RDONLY)
        self.scratch = Path(tempfile.mkdtemp())
        return await super().reset(task)

    async def close(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.scratch.rmdir()


class NoFullScore(Calculator):
    """Its expert says something else."""

    name = "no_full_score"

    def expert(self, task: Task) -> Expert:
        yield say("nonsense")
