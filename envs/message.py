"""Messages between a policy and an environment, in OpenAI chat form, and their records.

Environments speak messages only. Token ids belong to `rollout`, which renders these.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

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


@dataclass(frozen=True)
class Message:
    """One chat message; only assistant messages have `tool_calls`, only tool messages a tool's `name`."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None

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
        return chat


@dataclass(frozen=True)
class ToolSchema:
    """A tool as the policy is told of it: name, one-line description, JSON schema of the arguments."""

    name: str
    description: str
    parameters: JsonObject = field(default_factory=dict[str, Any])

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
