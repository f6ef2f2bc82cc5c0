"""reasoning-gym's data sets: problems made and answers scored by the package, in an interpreter of its own.

    config = { python = "/opt/rg/bin/python", datasets = ["chain_sum", "knights_knaves"] }

A task holds the whole entry, so equal problems are one task, and a recorded task can be scored again. The
answer is what the policy last put between <answer> and </answer>, or else all it wrote.
"""

import random
import re
from typing import ClassVar

from pydantic import Field, PositiveFloat

from envs.env import Env, EnvConfig, Expert, Task, say
from envs.interop.interpreter import ChildInterpreter, child_interpreter
from envs.message import JsonObject, Message

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGymConfig(EnvConfig):
    """python: an interpreter that has reasoning-gym. datasets: names, drawn from alike. settings: by name,
    what `create_dataset` takes. difficulty: a level of their curricula; without it the data sets' defaults.
    system: a system message. request_seconds: for making or scoring one problem.
    """

    python: str
    datasets: tuple[str, ...] = Field(min_length=1)
    settings: dict[str, JsonObject] = {}
    difficulty: int | None = Field(default=None, ge=1, le=3)
    system: str = ""
    request_seconds: PositiveFloat = 20.0


class ReasoningGym(Env):
    """A problem of reasoning-gym, answered in one turn."""

    name = "reasoning_gym"
    reward_names = ("score",)
    config_type = ReasoningGymConfig
    config: ReasoningGymConfig
    difficulties: ClassVar[int] = 3

    @property
    def child(self) -> ChildInterpreter:
        """The interpreter that has the package."""
        seconds = self.config.request_seconds
        return child_interpreter(self.config.python, "reasoning_gym_server.py", seconds)

    def probe(self) -> None:
        """Every data set can be made with these settings."""
        for dataset in {**dict.fromkeys(self.config.datasets), **self.config.settings}:
            self.child.ask_now("check", **self._made_of(dataset))

    def _made_of(self, dataset: str) -> JsonObject:
        settings = self.config.settings.get(dataset, {})
        return {"dataset": dataset, "settings": settings, "difficulty": self.config.difficulty}

    def sample(self, rng: random.Random) -> JsonObject:
        made_of = self._made_of(rng.choice(self.config.datasets))
        seed = rng.randrange(2**31)
        return {**made_of, "entry": self.child.ask_now("problem", **made_of, seed=seed)}

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.notes |= await self.child.ask("versions")
        system = [Message("system", self.config.system)] if self.config.system else []
        return [*system, Message("user", task.data["entry"]["question"])]

    async def score(self) -> dict[str, float]:
        """`score`: reasoning-gym's, from 0 to 1."""
        if self.answer is None:
            return {"score": 0.0}
        tagged = _ANSWER.findall(self.answer)
        answer = (tagged[-1] if tagged else self.answer).strip()
        return {"score": await self.child.ask("score", **self.task, answer=answer)}

    def expert(self, task: Task) -> Expert:
        """The data set's own answer; a few have none, since many answers are right."""
        answer = task.data["entry"]["answer"]
        if answer is None:
            raise TypeError(f"data set {task.data['dataset']!r} gives no answer to show")
        yield say(str(answer))
