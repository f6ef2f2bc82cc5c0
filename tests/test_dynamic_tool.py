"""Tools known only at reset: arguments against a JSON schema, and an episode that has such tools."""

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.dynamic_tool import DynamicTool, object_schema
from envs.env import Env, EnvConfig, Task
from envs.message import Message, ToolCall, ToolSchema
from envs.session import Deadlines, EnvFault, EnvSession, HostFault
from envs.tool import ToolError, ToolOptions, tool

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
        "x": {"type": "number"},
        "flag": {"type": "boolean"},
        "text": {"type": "string"},
        "tags": {"type": "array"},
        "kind": {"enum": ["a", 2]},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "both": {"type": ["string", "integer"]},
        "label": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "point": {"$ref": "#/$defs/Point"},
        "loop": {"$ref": "#/$defs/Loop"},
        "nested": {
            "type": "object",
            "properties": {"at": {"items": {"$ref": "#/$defs/Place"}}},
            "additionalProperties": False,
        },
        "short": {"type": "string", "maxLength": 2},
        "choice": {"oneOf": [{"properties": {"a": {"type": "string"}}}, {"type": "null"}]},
        "any": {},
        "odd": {"type": "quaternion"},
    },
    "required": ["n"],
    "$defs": {
        "Point": {"type": "object"},
        "Place": {"properties": {"x": {"type": "number"}}, "required": ["x"]},
        "Loop": {"$ref": "#/$defs/Loop"},
    },
}


async def echo(arguments: dict[str, Any]) -> str:
    return repr(arguments)


TOOL = DynamicTool(ToolSchema("act", "", SCHEMA), echo)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"n": 3}, {"n": 3}),
        ({"n": "3", "x": "2"}, {"n": 3, "x": 2}),
        ({"n": 0, "text": "007"}, {"n": 0, "text": "007"}),
        ({"n": 0, "flag": "true", "tags": "[1]"}, {"n": 0, "flag": True, "tags": [1]}),
        ({"n": 0, "kind": "a"}, {"n": 0, "kind": "a"}),
        ({"n": 0, "kind": "2"}, {"n": 0, "kind": 2}),
        ({"n": 0, "maybe": "null"}, {"n": 0, "maybe": None}),
        ({"n": 0, "both": "5"}, {"n": 0, "both": "5"}),
        ({"n": 0, "label": "null"}, {"n": 0, "label": None}),
        ({"n": 0, "label": "731"}, {"n": 0, "label": "731"}),
        ({"n": 0, "text": "null", "any": "null"}, {"n": 0, "text": "null", "any": "null"}),
        ({"n": 0, "point": '{"x": 1}'}, {"n": 0, "point": {"x": 1}}),
        (
            {"n": 0, "any": "5", "odd": "1k", "loop": 4},
            {"n": 0, "any": "5", "odd": "1k", "loop": 4},
        ),
        ({"n": 0, "unheard": [1]}, {"n": 0, "unheard": [1]}),
        ({"n": 0, "tags": '["\\ud800"]'}, {"n": 0, "tags": [r"\ud800"]}),
    ],
)
def test_arguments_are_taken_as_written_or_else_as_the_json_they_are(written, read):
    assert TOOL.parse(written) == read


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({}, "act: argument n: field required"),
        ({"n": "x"}, "act: argument n: has to be integer, not 'x'"),
        ({"n": True}, "act: argument n: has to be integer, not True"),
        ({"n": 1, "any": float("nan")}, "act: argument any: has to be JSON, which has no NaN"),
        ({"n": 1, "point": {"x": [float("inf")]}}, "act: argument point: has to be JSON"),
        ({"n": 1, "any": "1e999", "point": "NaN"}, "act: argument point: has to be"),
        ({"n": 1.5}, "act: argument n: has to be integer, not 1.5"),
        ({"n": -1}, "act: argument n: has to be at least 0, not -1"),
        ({"n": 10}, "act: argument n: has to be at most 9, not 10"),
        ({"n": 1, "text": 5}, "act: argument text: has to be string, not 5"),
        ({"n": 1, "kind": "b"}, "act: argument kind: has to be one of 'a', 2, not 'b'"),
        ({"n": 1, "maybe": "x"}, "act: argument maybe: has to be integer, not 'x'; or"),
        ({"n": 1, "point": 5}, "act: argument point: has to be object, not 5"),
        ({"n": "[" * 100_000}, "act: argument n: has to be integer"),
        ({"n": 1, "nested": {"at": [{}]}}, "act: argument nested.at.0.x: field required"),
        ({"n": 1, "nested": {"at": [{"x": "a"}]}}, "act: argument nested.at.0.x: has to be number"),
        ({"n": 1, "nested": '{"to": 1}'}, "act: argument nested.to: unknown"),
        ({"n": 1, "short": "abc"}, "act: argument short: 'abc' is too long"),
        ({"n": 1, "choice": {"a": 1}}, "act: argument choice: a: has to be string, not 1; or"),
    ],
)
def test_arguments_that_do_not_fit_are_one_sentence_for_the_policy(written, sentence):
    with pytest.raises(ToolError) as caught:
        TOOL.parse(written)
    assert str(caught.value).startswith(sentence)


def test_a_closed_schema_refuses_what_it_does_not_name():
    closed = object_schema({"additionalProperties": False})
    with pytest.raises(ToolError, match="act: argument y: unknown"):
        DynamicTool(ToolSchema("act", "", closed), echo).parse({"y": 1})


def test_a_reference_out_of_the_schema_is_not_followed(monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a schema made us open a connection")

    monkeypatch.setattr("socket.create_connection", refuse)
    schema = object_schema({"properties": {"n": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    assert DynamicTool(ToolSchema("act", "", schema), echo).parse({"n": "5"}) == {"n": "5"}


async def test_without_the_package_a_reset_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema.validators", None)
    with pytest.raises(EnvFault, match=r"needs the package 'jsonschema.*dorado-rl\[interop\]'"):
        await opened()


@given(
    st.dictionaries(
        st.sampled_from([*SCHEMA["properties"], "other"]),
        st.one_of(st.text(max_size=8), st.integers(), st.none(), st.lists(st.integers())),
    )
)
def test_any_arguments_are_either_accepted_whole_or_refused_with_a_tool_error(arguments):
    try:
        assert set(TOOL.parse(arguments)) == set(arguments)
    except ToolError:
        return


class Served(Env):
    """An environment with a tool of its own and one that it learns of."""

    name = "served"
    extra = "guess"
    gone = False

    async def reset(self, task: Task) -> list[Message]:
        if self.gone:
            raise HostFault("the server is gone")
        return [Message("user", "go")]

    async def dynamic_tools(self) -> list[DynamicTool]:
        schema = object_schema({"properties": {"n": {"type": "integer"}}, "required": ["n"]})
        return [DynamicTool(ToolSchema(self.extra, "", schema), self._guess, ToolOptions())]

    async def _guess(self, arguments: dict[str, Any]) -> str:
        if arguments["n"] == 0:
            raise HostFault("the server is gone")
        if arguments["n"] == 1:
            raise ToolError("not one")
        if arguments["n"] == 2:
            raise RuntimeError("a bug")
        self.done = arguments["n"] == 9
        return str(arguments["n"])

    @tool
    async def own(self) -> str:
        """a tool of the class"""
        return "own"


async def opened(**changes: Any) -> EnvSession:
    env = Served(EnvConfig())
    for name, value in changes.items():
        setattr(env, name, value)
    session = EnvSession(env, Deadlines())
    session.opening = await session.open(Task("served", {}))  # type: ignore[attr-defined]
    return session


async def test_tools_of_the_reset_stand_beside_those_of_the_class():
    session = await opened()
    assert [t.name for t in session.opening.tools] == ["own", "guess"]  # type: ignore[attr-defined]
    calls = (ToolCall("own", {}), ToolCall("guess", {"n": "5"}), ToolCall("guess", {"n": 1}))
    result = await session.step("", calls)
    assert [m.content for m in result.messages] == ["own", "5", "error: not one"]
    assert (result.bad_calls, result.done) == (1, False)


async def test_one_episodes_tools_are_not_the_next_ones():
    await opened()
    assert list(EnvSession(Served(EnvConfig()), Deadlines()).tools) == ["own"]


async def test_a_tool_that_ends_the_world_ends_the_episode_with_its_turn():
    session = await opened()
    result = await session.step("", (ToolCall("guess", {"n": 9}), ToolCall("own", {})))
    assert [m.content for m in result.messages] == ["9", "error: the episode is over"]
    assert result.done


async def test_two_tools_of_one_name_are_the_environments_fault():
    with pytest.raises(EnvFault, match="two tools are called 'own'") as caught:
        await opened(extra="own")
    assert caught.value.kind == "reset"


async def test_a_server_that_is_gone_is_infrastructure_and_a_bug_is_the_environments():
    with pytest.raises(HostFault, match=r"^the server is gone$"):
        await opened(gone=True)
    session = await opened()
    with pytest.raises(HostFault, match=r"^the server is gone$"):
        await session.step("", (ToolCall("guess", {"n": 0}),))
    with pytest.raises(EnvFault, match="RuntimeError: a bug"):
        await session.step("", (ToolCall("guess", {"n": 2}),))
