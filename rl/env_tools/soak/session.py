"""Puts around an episode what a soak needs: a gate that holds a round together, and a session that is
counted."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from envs.agents.access import ModelAccess
from envs.env import Task
from envs.handover import NamedRewards
from envs.message import ToolCall
from envs.session import Opening, StepResult
from rollout.episode import Session

T = TypeVar("T")


@dataclass
class Load:
    """Episodes open now, the most there ever were, and the acts that were begun."""

    open_now: int = 0
    most_at_once: int = 0
    acts: int = 0


class Gate:
    """Lets no episode play on before all of a round are open or have failed."""

    def __init__(self, count: int) -> None:
        self.missing = count
        self.all_there = asyncio.Event()

    def arrive(self) -> None:
        self.missing -= 1
        if self.missing == 0:
            self.all_there.set()


class Watched:
    """An episode's session: counts its acts, and cancels the episode in the middle of one of them."""

    def __init__(self, session: Session, load: Load, cancel_at: int | None) -> None:
        self.session = session
        self.load = load
        self.cancel_at = cancel_at
        self.acts = 0
        self.opened = False

    async def open(self, task: Task) -> Opening:
        opening = await self._act(self.session.open(task))
        self.opened = True
        self.load.open_now += 1
        self.load.most_at_once = max(self.load.most_at_once, self.load.open_now)
        return opening

    async def step(self, text: str, calls: tuple[ToolCall, ...]) -> StepResult:
        return await self._act(self.session.step(text, calls))

    async def play(self, access: ModelAccess) -> str:
        return await self._act(self.session.play(access))

    async def score(self) -> NamedRewards:
        return await self._act(self.session.score())

    async def close(self) -> None:
        if self.opened:
            self.load.open_now -= 1
        await self.session.close()

    async def _act(self, act: Awaitable[T]) -> T:
        self.load.acts += 1
        self.acts += 1
        if self.acts - 1 == self.cancel_at:
            task = asyncio.current_task()
            assert task is not None, "an episode is a task"
            asyncio.get_running_loop().call_soon(task.cancel)
        return await act
