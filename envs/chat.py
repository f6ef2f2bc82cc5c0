"""Chats: whole conversations to imitate, read strictly out of rows of data sets.

In: a row in OpenAI's chat form, `{"messages": [...], "tools": [...]}`, or with ShareGPT's `conversations`.
Out: messages, tools, and which of the assistant's messages carry no loss. Refuses, with a ValueError of one
sentence that names the message, what a policy would not see, could not have said, or would learn wrong.

Left out on purpose: rows of other kinds (instruction and output, preference pairs), which say no roles.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from envs.dynamic_tool import as_object
from envs.message import JsonObject, Message, Role, ToolCall, ToolSchema
from envs.rows import content_text
from envs.text import shown

# Roles of other names, in OpenAI's form and in ShareGPT's.
_ROLES = {"developer": "system", "function": "tool"}
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
# Keys of a message that hold what the assistant said beside its content.
_BESIDE = ("reasoning_content", "reasoning", "thinking", "refusal", "audio")
_EXAMPLE = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'


@dataclass(frozen=True)
class Chat:
    """A conversation, which ends with the assistant.

    silent: indices of the assistant's messages that carry no loss. sharegpt: True if it was in ShareGPT's
    form.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    silent: frozenset[int] = frozenset()
    sharegpt: bool = False


def read_chat(row: JsonObject, *, from_table: bool = False) -> Chat:
    """Return a row as a chat. Raises ValueError.

    from_table: the row is of a table (Parquet, the Hub), which has every key of any row in each of them; keys
    without a value are then no keys.
    """
    if from_table:
        row = cast(JsonObject, _without_blanks(row))
    given, sharegpt = _messages(row)
    tools = _tools(row)
    said: list[tuple[tuple[int, int], Message]] = []
    calls = _OpenCalls({tool.name for tool in tools})
    silent: set[int] = set()
    for index, one in enumerate(given):
        try:
            message = _message(one, calls)
            calls.follow(index, one, message)
            if not _weighs(one, message):
                silent.add(index)
        except ValueError as error:
            raise ValueError(f"message {index + 1}: {error}") from None
        if message.role == "system" and index:
            raise ValueError(f"message {index + 1}: a system message has to be the first one")
        said.append((calls.place, message))
    messages = tuple(message for _, message in sorted(said, key=lambda one: one[0]))
    _check_turns(messages, silent)
    return Chat(messages, tools, frozenset(silent), sharegpt)


def _messages(row: JsonObject) -> tuple[list[JsonObject], bool]:
    """The messages as they are in the row, in OpenAI's form, and True if they were in ShareGPT's."""
    names = ("messages", "conversations", "conversation")
    column = next((name for name in names if row.get(name) is not None), None)
    if column is None:
        raise ValueError(
            f"there is no column 'messages', there are {', '.join(row) or 'none'}: a row has to be a chat, "
            f"such as {_EXAMPLE}"
        )
    value = _json(row[column], column)
    if not isinstance(value, list):
        raise ValueError(f"{column!r} has to be a list of messages, not {shown(value)}")
    found: list[JsonObject] = []
    for number, one in enumerate(cast(list[object], value), 1):
        if not isinstance(one, dict):
            raise ValueError(
                f"message {number}: it has to be an object with role and content, not {shown(one)}"
            )
        found.append(cast(JsonObject, one))
    sharegpt = bool(found) and all("from" in one and "role" not in one for one in found)
    if sharegpt:
        found = [_of_sharegpt(one, number) for number, one in enumerate(found, 1)]
    return _with_system(row.get("system"), found), sharegpt


def _with_system(given: object, messages: list[JsonObject]) -> list[JsonObject]:
    """The messages, behind a row's `system` where they have none of their own: a text, or parts of one, as
    Anthropic's API has it."""
    text = "" if given is None else content_text(given, "system")
    if not text.strip():
        return messages
    first = messages[0] if messages else {}
    if first.get("role") in ("system", "developer"):
        return messages
    return [{"role": "system", "content": text}, *messages]


def _of_sharegpt(one: JsonObject, number: int) -> JsonObject:
    kind, text = one["from"], one.get("value")
    role = _SHAREGPT.get(kind, kind) if isinstance(kind, str) else kind
    if kind != "function_call":
        return {**one, "role": role, "content": text}
    calls = _json(text, f"message {number}: the call")
    return {
        "role": role,
        "content": "",
        "tool_calls": calls if isinstance(calls, list) else [calls],
    }


def _message(one: JsonObject, calls: "_OpenCalls") -> Message:
    role = _ROLES.get(one["role"], one["role"]) if isinstance(one.get("role"), str) else None
    if role not in get_args(Role):
        raise ValueError(
            f"its role has to be one of {', '.join(get_args(Role))}, not {shown(one.get('role'))}"
        )
    role = cast(Role, role)
    for key in _BESIDE:
        if one.get(key):
            raise ValueError(
                f"{key!r} would be left out: write it into content as the policy is to write it (such as "
                "<think>…</think> before the answer), or drop the key"
            )
    own = tuple(_call(call, calls.tools) for call in _called(one))
    if own and role != "assistant":
        raise ValueError(f"only the assistant has tool_calls, and its role is {role!r}")
    content = one.get("content")
    if content is None and "content" not in one and not own:
        raise ValueError(f"it has no content, it has {', '.join(one)}")
    text = "" if content is None else content_text(content, "content")
    if not text.strip() and not own and role in ("user", "assistant"):
        raise ValueError(f"the {role} says nothing: its content is empty")
    name = calls.answered(one) if role == "tool" else None
    return Message(role, text, own, name)


def _called(one: JsonObject) -> list[object]:
    """A message's calls, of OpenAI's form of today or of before."""
    value = _json(one.get("tool_calls"), "tool_calls")
    if value in (None, "", []):
        earlier = _json(one.get("function_call"), "function_call")
        return [earlier] if earlier else []
    if not isinstance(value, list):
        raise ValueError(f"'tool_calls' has to be a list of calls, not {shown(value)}")
    return cast(list[object], value)


def _call(value: object, offered: set[str]) -> ToolCall:
    call = as_object(value)
    function = as_object(call.get("function")) or call
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"a call needs the name of a tool, and this one is {shown(value)}")
    if offered and name not in offered:
        near = difflib.get_close_matches(name, offered, n=1)
        hint = f", did you mean {near[0]!r}?" if near else f": {', '.join(sorted(offered))}"
        raise ValueError(f"it calls {name!r}, which is none of the row's tools{hint}")
    given: object = function.get("arguments")
    arguments: object = {} if given in (None, "") else _json(given, f"the arguments of {name!r}")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {name!r} have to be an object, not {shown(arguments)}")
    return ToolCall(name, cast(JsonObject, arguments))


@dataclass(frozen=True)
class _OpenCall:
    """A call without a result. place: index of its message, and which of that one's calls it is, from 1."""

    place: tuple[int, int]
    id: str
    name: str


class _OpenCalls:
    """Which calls of the assistant's latest message have no result yet. place: of a message among the
    others: a result stands behind its calls in their order, whatever order results came in."""

    def __init__(self, tools: set[str]) -> None:
        self.tools = tools
        self.open: list[_OpenCall] = []
        self.place = (0, 0)

    def answered(self, one: JsonObject) -> str:
        """Take the call that this result answers, and return its tool's name. Raises ValueError."""
        id, name = str(one.get("tool_call_id") or ""), one.get("name")
        if not self.open:
            raise ValueError("it is a tool's result, and no call is without one before it")
        known = [call for call in self.open if call.id and call.id == id]
        if id and not known and any(call.id for call in self.open):
            ids = ", ".join(repr(call.id) for call in self.open)
            raise ValueError(
                f"it is the result of call {id!r}, and the calls without one are {ids}"
            )
        called_so = [call for call in self.open if call.name == name]
        found = (known or called_so or self.open)[0]
        if isinstance(name, str) and name and name != found.name:
            raise ValueError(f"it is the result of {name!r}, and {found.name!r} was called")
        self.open.remove(found)
        self.place = found.place
        return found.name

    def follow(self, index: int, one: JsonObject, message: Message) -> None:
        """Take the calls of message `index` up. Raises ValueError where those before have no result."""
        if message.role == "tool":
            return
        if self.open:
            names = ", ".join(repr(call.name) for call in self.open)
            raise ValueError(f"the call of {names} before it has no result")
        ids = [str(as_object(call).get("id") or "") for call in _called(one)]
        self.place = (index, 0)
        self.open = [
            _OpenCall((index, number), id, call.name)
            for number, (id, call) in enumerate(zip(ids, message.tool_calls, strict=True), 1)
        ]


def _weighs(one: JsonObject, message: Message) -> bool:
    """True if a message carries loss where it is the assistant's: OpenAI's `weight` is 0 or 1."""
    weight = one.get("weight")
    if message.role != "assistant" or weight is None:
        return True
    if weight not in (0, 1):
        raise ValueError(f"its weight has to be 0 or 1, not {shown(weight)}")
    return bool(weight)


def _check_turns(said: Sequence[Message], silent: set[int]) -> None:
    """Raise ValueError unless somebody speaks to the assistant, which has the last word and carries loss."""
    roles = [message.role for message in said]
    if "assistant" not in roles:
        raise ValueError("no message is the assistant's: there is nothing to learn")
    if "user" not in roles[: roles.index("assistant")]:
        number = roles.index("assistant") + 1
        raise ValueError(
            f"message {number} is the assistant's, and nobody has spoken to it: a user's message has to come "
            "first"
        )
    if roles[-1] != "assistant":
        raise ValueError(
            f"message {len(roles)} is the last and the {roles[-1]}'s: it has to be the assistant's, of which "
            "is learnt"
        )
    if all(index in silent for index, role in enumerate(roles) if role == "assistant"):
        raise ValueError("every message of the assistant has weight 0: there is nothing to learn")


def _tools(row: JsonObject) -> tuple[ToolSchema, ...]:
    column = "tools" if row.get("tools") is not None else "functions"
    value = _json(row.get(column), column)
    if value in (None, ""):
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{column!r} has to be a list of tools, not {shown(value)}")
    found: list[ToolSchema] = []
    for number, one in enumerate(cast(list[object], value), 1):
        tool = as_object(one)
        function = as_object(tool.get("function")) or tool
        name, said = function.get("name"), function.get("description")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"tool {number} has no name, it is {shown(one)}")
        given = _json(function.get("parameters"), f"the parameters of tool {name!r}")
        schema: object = given or cast(JsonObject, {})
        if not isinstance(schema, dict):
            raise ValueError(
                f"the parameters of tool {name!r} have to be a JSON schema, not {shown(schema)}"
            )
        if any(tool.name == name for tool in found):
            raise ValueError(f"two tools are called {name!r}")
        parameters: JsonObject = {"type": "object", "properties": {}, **cast(JsonObject, schema)}
        found.append(ToolSchema(name, said if isinstance(said, str) else "", parameters))
    return tuple(found)


def _json(value: object, what: str) -> Any:
    """A value, read as JSON where it is text: many data sets hold lists and objects so. Raises ValueError."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"{what}: no JSON: {shown(value)}") from None


def _without_blanks(value: object) -> object:
    """The same value without the keys whose value is None."""
    if isinstance(value, dict):
        pairs = cast(JsonObject, value).items()
        return {key: _without_blanks(one) for key, one in pairs if one is not None}
    if isinstance(value, list):
        return [_without_blanks(one) for one in cast(list[object], value)]
    return value
