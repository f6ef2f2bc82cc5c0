"""Anchors of a reward model: conversations whose scores are known, scored again and again beside a run.

Consumes answers of the service. Produces a distance, and a sentence where it is too far. A frozen model moves
no anchor: one that has moved means other weights, another chat template, or a server that answers for
something else.
"""

import asyncio
from collections.abc import Callable, Sequence

from envs.chat_model import ChatModel, ChatRequest, ModelFault
from envs.message import Message
from reward.judges.reward_model import SCORE, score_of
from trainer.reward_scores import Anchor, TrainingScores

# In standard deviations of training's scores: the first look against training, where the served dtype may be
# another one; a later look against the first.
FROM_TRAINING, FROM_FIRST = 0.25, 0.05
# After all others.
PRIORITY = 2


class Anchors:
    """The anchors of one service."""

    def __init__(
        self, model: ChatModel, training: TrainingScores, say: Callable[[str], None]
    ) -> None:
        """say: hears a sentence when anchors have moved, and when they are back."""
        self.model = model
        self.training = training
        self.say = say
        self.first: list[float] | None = None
        # The largest distance of the last look, in standard deviations; None before there was one.
        self.distance: float | None = None
        # Why there is an alarm now; "" where there is none.
        self.moved = ""

    async def watch(self, seconds: float, asleep: Callable[[], bool] = lambda: False) -> None:
        """Look at once, and then after so many seconds each. asleep: True where a look would wake the model.
        Ends by cancellation only."""
        while True:
            if not asleep():
                await self.look()
            await asyncio.sleep(seconds)

    async def look(self) -> None:
        """Score every anchor; says nothing where the service gives no answers: its pool does."""
        try:
            found = [await self._score(one) for one in self.training.anchors]
        except ModelFault:
            return
        known = [one.score for one in self.training.anchors]
        self.distance = self._furthest(found, known)
        looks = [(self.distance / FROM_TRAINING, "at the end of its training")]
        if self.first is not None:
            looks.append((self._furthest(found, self.first) / FROM_FIRST, "when it was started"))
        self.first = self.first or found
        far, when = max(looks)
        before, self.moved = self.moved, ""
        if far > 1:
            self.moved = (
                f"an anchor is scored {self.distance:.2g} standard deviations away from its score in "
                f"training and not as {when}; a frozen model moves none: look at its folder, dtype and server"
            )
        if self.moved and not before:
            self.say(f"model {self.model.name!r}: {self.moved}")
        if before and not self.moved:
            self.say(f"model {self.model.name!r}: its anchors are where they were")

    def _furthest(self, found: Sequence[float], known: Sequence[float]) -> float:
        apart = [abs(a - b) for a, b in zip(found, known, strict=True)]
        return max(apart, default=0.0) / self.training.spread

    async def _score(self, anchor: Anchor) -> float:
        messages = tuple(Message(one["role"], one["content"]) for one in anchor.messages)
        request = ChatRequest(messages, 1, schema=SCORE, priority=PRIORITY, keep=False)
        return score_of(await self.model.ask(request), self.model)
