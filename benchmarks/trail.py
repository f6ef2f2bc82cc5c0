"""A document longer than the window, read page by page: one page has a code, which is asked for at the end.

Environments for `context_training.py`: `Trail`, whose reader has to carry the code in summaries, and
`NotedTrail`, whose reader can keep a note. The environment knows where one is, and shows no page twice.
"""

import random

from pydantic import Field

from envs.env import Env, EnvConfig, Task
from envs.message import JsonObject, Message
from envs.tool import tool

WORDS = ("mill", "lake", "road", "hill", "wood", "barn", "gate", "well")
END = "the end"


class TrailConfig(EnvConfig):
    """pages: of the document. words: of filler on each."""

    pages: int = Field(default=32, ge=1)
    words: int = Field(default=12, ge=0)


class Trail(Env):
    """Read to the end, and say the code that one of the pages had."""

    name = "trail"
    reward_names = ("solved",)
    config_type = TrailConfig
    config: TrailConfig

    def sample(self, rng: random.Random) -> JsonObject:
        pages = self.config.pages
        return {"code": rng.randint(10, 99), "page": rng.randint(1, pages), "seed": rng.random()}

    async def reset(self, task: Task) -> list[Message]:
        self.code, self.at = task.data["code"], task.data["page"]
        self.words = random.Random(task.data["seed"])
        self.page, self.answer, self.memo = 0, "", "nothing"
        return [Message("user", opening())]

    @tool
    async def read(self) -> str:
        """the next page"""
        self.page += 1
        if self.page > self.config.pages:
            return END
        filler = " ".join(self.words.choices(WORDS, k=self.config.words))
        return f"{filler} code {self.code}" if self.page == self.at else filler

    async def score(self) -> dict[str, float]:
        return {"solved": float((self.answer or "").strip() == str(self.code))}


class NotedTrail(Trail):
    """The same, with a note that outlives every context."""

    name = "noted_trail"

    @tool
    async def keep(self, text: str) -> str:
        """keep a note"""
        self.memo = text
        return "kept"

    @tool(read_only=True)
    async def recall(self) -> str:
        """the note"""
        return self.memo


def opening() -> str:
    """Return the question."""
    return "read to the end. which code ?"
