"""Messages between a policy and an environment, in OpenAI chat form, and their records.

Environments speak messages only. Token ids belong to `rollout`, which renders these.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast, get_args

from envs.text import encodable, encodable_json, shown, told

# A JSON object whose keys only its author knows: a task, the arguments of a tool, a schema.
JsonObject: TypeAlias = dict[str, Any]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """One call as the policy wrote it: `ToolCall("add", {"a": 2, "b": 3})`.

    Argument values are whatever the parser found (strings in the LongCat format, JSON values in the
    Hermes format); the tool's own schema converts and checks them.
    """

    name: str
    arguments: JsonObject

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", encodable(self.name))
        object.__setattr__(self, "arguments", encodable_json(self.arguments))


@dataclass(frozen=True)
class Message:
    """One chat message; only assistant messages have `tool_calls`, only tool messages a tool's `name`.

    reasoning: an assistant's thoughts, apart from its content; what a chat template makes of them is its own.
    by: who wrote the text of a simulated user (`envs.user`); for the record, no template reads it.
    Its text is made encodable (`envs.text`). Raises TypeError for content that is no text, ValueError for a
    role that there is not.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    reasoning: str = ""
    by: str = ""

    def __post_init__(self) -> None:
        content = cast(object, self.content)  # an author's: it may be anything
        if not isinstance(content, str):
            raise TypeError(f"a message's content has to be text, not {shown(content)}")
        if self.role not in get_args(Role):
            raise ValueError(
                f"a message's role has to be one of {', '.join(get_args(Role))}, not {shown(self.role)}"
            )
        object.__setattr__(self, "content", encodable(content))
        object.__setattr__(self, "reasoning", encodable(self.reasoning))
        object.__setattr__(self, "by", encodable(self.by))
        if self.name is not None:
            object.__setattr__(self, "name", encodable(self.name))

    def as_chat(self) -> JsonObject:
        """The dict that chat templates expect (`arguments` stays an object)."""
        chat: JsonObject = {"role": self.role, "content": self.content}
        if self.tool_calls:
            chat["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.tool_calls
            ]
        if self.name is not None:
            chat["name"] = self.name
        if self.reasoning:  # most templates read the first key, some the second
            chat |= {"reasoning_content": self.reasoning, "thinking": self.reasoning}
        return chat


@dataclass(frozen=True)
class ToolSchema:
    """A tool as the policy is told of it: name, description, JSON schema of the arguments."""

    name: str
    description: str
    parameters: JsonObject = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", encodable(self.name))
        object.__setattr__(self, "description", encodable(self.description))
        try:
            json.dumps(self.parameters)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"the schema of tool {self.name!r} is no JSON: {told(error)}") from None
        object.__setattr__(self, "parameters", encodable_json(self.parameters))

    def as_chat(self) -> JsonObject:
        """The OpenAI function form that chat templates expect."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }
