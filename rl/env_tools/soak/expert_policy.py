"""An environment's expert in the place of engine and renderer, so that the episode of a run plays it.

There are no tokens: a completion's one id stands for the message the expert is at.
"""

import asyncio
import random
from collections.abc import Sequence

from envs.env import Expert
from envs.message import Message, ToolSchema
from rollout.engine import Completion, Request
from rollout.reading import Written


class ExpertEnded(Exception):
    """The expert has nothing more to say, and the episode is not over."""


class ExpertPolicy:
    """One episode's expert (`rollout.episode.Rendering`, and its `generate` an engine's)."""

    def __init__(self, expert: Expert, rng: random.Random, latency_seconds: float) -> None:
        """latency_seconds: mean of the exponential time that each turn takes, as an engine's would."""
        self.expert = expert
        self.rng = rng
        self.latency = latency_seconds
        self.said = Message("assistant")
        self.results: list[str] | None = None

    async def generate(self, request: Request) -> Completion:
        """The expert's next message. Raises ExpertEnded, and whatever the expert raises."""
        if self.latency > 0:
            await asyncio.sleep(self.rng.expovariate(1 / self.latency))
        try:
            first = self.results is None
            self.said = next(self.expert) if first else self.expert.send(self.results or [])
        except StopIteration:
            raise ExpertEnded("the expert ended and the environment did not") from None
        return Completion((0,), (0.0,), (), "stop", engine="expert")

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        return [0]

    def suffix(self, messages: Sequence[Message], completion: Sequence[int]) -> list[int]:
        """Pass what the environment said to the expert."""
        self.results = [message.content for message in messages]
        return [0]

    def forgets(self, messages: Sequence[Message], thought: bool) -> bool:
        """Answer that earlier turns stay as they are."""
        return False

    def read(self, completion: Sequence[int], tools: Sequence[ToolSchema]) -> Written:
        return Written("", self.said.content, self.said.tool_calls)

    def text(self, ids: Sequence[int]) -> str:
        """Return nothing: an expert's ids are no text."""
        return ""
