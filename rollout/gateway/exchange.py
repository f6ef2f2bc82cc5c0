"""Requests and answers, whatever API a client speaks: plain records between HTTP and the episode."""

from dataclasses import dataclass
from typing import Literal

from envs.message import JsonObject, Message, ToolSchema

Finish = Literal["stop", "length", "calls"]


@dataclass(frozen=True)
class Ask:
    """One request. max_tokens: None where the client says nothing. stop: texts at which the answer ends.

    key: equal for requests that are the same. wants: sampling that the client named and the run overrules.
    unknown: names of parameters that nothing is made of.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    key: str = ""
    wants: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """A tool call as a client reads it: `Call("call_g0.0_3_0", "add", {"a": 2, "b": 3})`."""

    id: str
    name: str
    arguments: JsonObject


@dataclass(frozen=True)
class Answer:
    """The policy's turn. text: without thought and calls. stop: the client's stop text that ended it, or "".
    Counts are of tokens; cached_tokens: of the prompt, those that the engine did not compute."""

    id: str
    created: int
    model: str
    text: str
    thought: str
    calls: tuple[Call, ...]
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    stop: str = ""
