"""A frozen chat model beside the policy, as judges and simulated users see it: messages in, a message out.

Whoever serves it is behind `ChatModel`: a pool with a queue, a cache and a budget in a run (`rl.models`), a
few lines of a script in a test. A fault of the service is a `ModelFault` and never an answer.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from envs.message import JsonObject, Message
from envs.text import encodable

# Who waits for an answer: an episode, which holds its engine's cache meanwhile, or a finished trajectory.
USER, JUDGE = 0, 1


class ModelFault(Exception):
    """The model gave no answer that can be used; the message says why, and after how long."""


@dataclass(frozen=True)
class ChatRequest:
    """One question: `ChatRequest((Message("user", "Is 2 + 2 = 4?"),), max_tokens=8)`.

    temperature: 0 always takes the most likely token. schema: a JSON schema that the answer has to fit; its
    text is then that JSON object and nothing else. token_ids: instead of messages, a text to score token by
    token, by a model of use "score". number: of several answers to the same question, each of
    which is asked for and paid. priority: lower ones go first. keep: whether an equal question later may have
    the same answer.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 512
    temperature: float = 0.0
    schema: JsonObject | None = None
    token_ids: tuple[int, ...] = ()
    number: int = 0
    priority: int = JUDGE
    keep: bool = True

    @property
    def key(self) -> str:
        """The same for equal questions, whoever asks them and how urgently."""
        asked = [
            [message.as_chat() for message in self.messages],
            self.max_tokens,
            self.temperature,
            self.schema,
            self.token_ids,
            self.number,
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ChatAnswer:
    """One answer; its text is made encodable (`envs.text`). cut: the length limit ended it. cached: an equal
    question was paid for before."""

    text: str
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False
    cached: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", encodable(self.text))
        object.__setattr__(self, "model", encodable(self.model))


class ChatModel(Protocol):
    """A model that answers. name: as the run's settings call it."""

    @property
    def name(self) -> str: ...

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the model's answer. Raises ModelFault, in a bounded time whatever the service does."""
        ...
