"""Chats read out of rows: the forms that data sets have, and rows that say nothing to learn from."""

import json

import pytest

from envs.chat import read_chat
from envs.message import Message, ToolCall

USER, ANSWER = {"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "5"}
ADD = {
    "name": "add",
    "description": "adds",
    "parameters": {"properties": {"a": {"type": "integer"}}},
}


def chat(*messages, **columns):
    return read_chat({"messages": list(messages), **columns})


def test_a_chat_with_calls_has_their_arguments_as_objects_and_results_by_the_tools_name():
    found = chat(USER, CALLS, RESULT, ANSWER, tools=[{"type": "function", "function": ADD}])
    assert found.messages[1:3] == (
        Message("assistant", "", (ToolCall("add", {"a": 2}),)),
        Message("tool", "5", name="add"),
    )
    assert [tool.as_chat()["function"] for tool in found.tools] == [
        {**ADD, "parameters": {"type": "object", **ADD["parameters"]}}
    ]


@pytest.mark.parametrize("tools", [[ADD], json.dumps([ADD]), [{"function": ADD}]])
def test_tools_may_be_flat_or_text(tools):
    assert [tool.name for tool in chat(USER, ANSWER, tools=tools).tools] == ["add"]


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "add", "arguments": {"a": 2}}},
        {"name": "add", "arguments": {"a": 2}},
        {"name": "add", "arguments": '{"a": 2}'},
    ],
)
def test_calls_may_be_flat_and_without_an_id(call):
    result = {"role": "tool", "content": "5"}
    found = chat(USER, {"role": "assistant", "content": "", "tool_calls": [call]}, result, ANSWER)
    assert found.messages[1].tool_calls == (ToolCall("add", {"a": 2}),)
    assert found.messages[2].name == "add"


def test_a_call_of_the_earlier_form_is_a_call():
    calls = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    found = chat(USER, calls, {"role": "function", "name": "add", "content": "5"}, ANSWER)
    assert found.messages[1].tool_calls == (ToolCall("add", {"a": 2}),)


def test_results_of_two_calls_are_known_by_their_ids():
    second = {**CALL, "id": "c2", "function": {"name": "sub", "arguments": "{}"}}
    both = {**CALLS, "tool_calls": [CALL, second]}
    found = chat(USER, both, {**RESULT, "tool_call_id": "c2"}, RESULT, ANSWER)
    assert [m.name for m in found.messages[2:4]] == ["add", "sub"]


def test_results_stand_in_the_order_of_their_calls():
    """Templates without ids tell them by it, and those with ids get ids by it."""
    calls = [{**CALL, "id": "c1"}, {**CALL, "id": "c2"}, {**CALL, "id": 3}]
    given = [("c2", "two"), (3, "three"), ("c1", "one")]
    results = [{**RESULT, "tool_call_id": id, "content": text} for id, text in given]
    asked = {**CALLS, "tool_calls": calls}
    found = chat(USER, asked, *results, ANSWER, USER, {**ANSWER, "weight": 0})
    said = [m.content for m in found.messages if m.role == "tool"]
    assert said == ["one", "two", "three"]
    assert [m.role for m in found.messages][-3:] == ["assistant", "user", "assistant"]
    assert found.silent == {len(found.messages) - 1}


def test_results_without_an_id_are_known_by_their_tools_name():
    calls = [{"name": name, "arguments": {}} for name in ("add", "sub", "add")]
    results = [
        {"role": "tool", "name": n, "content": c}
        for n, c in zip(("sub", "add", "add"), "bac", strict=True)
    ]
    found = chat(USER, {**CALLS, "tool_calls": calls}, *results, ANSWER)
    said = [(m.name, m.content) for m in found.messages if m.role == "tool"]
    assert said == [("add", "a"), ("sub", "b"), ("add", "c")]


def test_a_weight_of_null_is_none():
    null = {"weight": None, "tool_calls": None, "name": None}
    assert chat({**USER, **null}, {**ANSWER, **null}) == chat(USER, ANSWER)


def test_parts_of_text_are_text_and_a_developer_is_the_system():
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "3?"}]
    found = chat({"role": "developer", "content": "be brief"}, {**USER, "content": parts}, ANSWER)
    assert found.messages[:2] == (Message("system", "be brief"), Message("user", "2 + 3?"))


def test_a_column_of_the_system_is_the_first_message_where_there_is_none():
    assert chat(USER, ANSWER, system="be brief").messages[0] == Message("system", "be brief")
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]
    assert chat(USER, ANSWER, system=parts).messages[0] == Message("system", "be brief")
    with pytest.raises(ValueError, match="'system': a message holds 'image'"):
        chat(USER, ANSWER, system=[{"type": "image"}])
    own = {"role": "system", "content": "own"}
    assert chat(own, USER, ANSWER, system="be brief").messages[0] == Message("system", "own")


def test_messages_of_weight_0_carry_no_loss():
    assert chat(USER, {**ANSWER, "weight": 0}, USER, ANSWER).silent == {1}


def test_what_a_table_has_filled_in_is_left_out_there_and_is_null_elsewhere():
    """Parquet has one type for a column: every call has the keys of all, and None where it had none."""
    call = {"name": "add", "arguments": {"a": 2, "b": None}}
    messages = [
        {**USER, "tool_calls": None, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": None},
        {"role": "tool", "content": "2", "tool_calls": None},
        {**ANSWER, "tool_calls": None},
    ]
    from_table = read_chat({"messages": messages, "tools": None}, from_table=True)
    assert from_table.messages[1].tool_calls == (ToolCall("add", {"a": 2}),)
    plain = [messages[0], {**messages[1], "weight": 1}, *messages[2:]]
    assert read_chat({"messages": plain}).messages[1].tool_calls[0].arguments == call["arguments"]


def test_sharegpt_is_read_as_messages():
    row = {
        "system": "be brief",
        "tools": json.dumps([ADD]),
        "conversations": [
            {"from": "human", "value": "2 + 3?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
            {"from": "observation", "value": "5"},
            {"from": "gpt", "value": "5"},
        ],
    }
    found = read_chat(row)
    assert found.sharegpt
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2].tool_calls == (ToolCall("add", {"a": 2}),)


def test_conversations_with_roles_are_messages():
    assert read_chat({"conversations": [USER, ANSWER]}) == chat(USER, ANSWER)


def call(**function):
    return {**CALLS, "tool_calls": [{"id": "c1", "function": {**CALL["function"], **function}}]}


# Rows, and what is said of them.
WRONG = {
    "no messages": ({"instruction": "a", "output": "b"}, "no column 'messages', there are instruc"),
    "no list": ({"messages": 7}, "'messages' has to be a list of messages, not 7"),
    "no JSON": ({"messages": "hello"}, "messages: no JSON: 'hello'"),
    "a text": ({"messages": ["hi"]}, "message 1: it has to be an object with role and content"),
    "no role": (
        {"messages": [{"content": "hi"}]},
        "message 1: its role has to be one of system, us",
    ),
    "no role beside a system text": (
        {"system": "be brief", "messages": [{"content": "hi"}]},
        "message 2: its role has to be one of system, us",
    ),
    "another role": (
        {"messages": [{**USER, "role": "bot"}]},
        "message 1: its role has to be one of",
    ),
    "no content": (
        {"messages": [{"role": "user", "text": "a"}]},
        "message 1: it has no content, it h",
    ),
    "a number": (
        {"messages": [{**USER, "content": 7}]},
        "message 1: 'content': a message's content",
    ),
    "an image": (
        {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]},
        "message 1: 'content': a message holds 'image_url', which a policy of text would not see",
    ),
    "empty": (
        {"messages": [USER, {**ANSWER, "content": " "}]},
        "message 2: the assistant says nothing",
    ),
    "no assistant": (
        {"messages": [USER]},
        "no message is the assistant's: there is nothing to learn",
    ),
    "no user": (
        {"messages": [ANSWER]},
        "message 1 is the assistant's, and nobody has spoken to it",
    ),
    "user last": (
        {"messages": [USER, ANSWER, USER]},
        "message 3 is the last and the user's: it has",
    ),
    "late system": (
        {"messages": [USER, {"role": "system", "content": "x"}, ANSWER]},
        "message 2: a system message has to be the first one",
    ),
    "result of nothing": (
        {"messages": [USER, RESULT, ANSWER]},
        "message 2: it is a tool's result, and",
    ),
    "result of another": (
        {"messages": [USER, CALLS, {**RESULT, "tool_call_id": "c9"}, ANSWER]},
        "message 3: it is the result of call 'c9', and the calls without one are 'c1'",
    ),
    "another tool's result": (
        {"messages": [USER, CALLS, {**RESULT, "name": "sub"}, ANSWER]},
        "message 3: it is the result of 'sub', and 'add' was called",
    ),
    "no result": (
        {"messages": [USER, CALLS, USER, ANSWER]},
        "message 3: the call of 'add' before it has",
    ),
    "broken arguments": (
        {"messages": [USER, call(arguments="{a: 1}"), RESULT, ANSWER]},
        "message 2: the arguments of 'add': no JSON: '{a: 1}'",
    ),
    "arguments in a list": (
        {"messages": [USER, call(arguments=[2]), RESULT, ANSWER]},
        "message 2: the arguments of 'add' have to be an object, not [2]",
    ),
    "a call without a name": (
        {"messages": [USER, call(name=None), RESULT, ANSWER]},
        "message 2: a call needs the name of a tool",
    ),
    "a tool that is not offered": (
        {"messages": [USER, call(name="ad"), RESULT, ANSWER], "tools": [ADD]},
        "message 2: it calls 'ad', which is none of the row's tools, did you mean 'add'?",
    ),
    "a user's call": (
        {"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]},
        "message 1: only the assistant has tool_calls, and its role is 'user'",
    ),
    "a thought beside": (
        {"messages": [USER, {**ANSWER, "reasoning_content": "2 and 3"}]},
        "message 2: 'reasoning_content' would be left out: write it into content",
    ),
    "a weight": (
        {"messages": [USER, {**ANSWER, "weight": 0.5}]},
        "message 2: its weight has to be 0 or 1",
    ),
    "no loss": (
        {"messages": [USER, {**ANSWER, "weight": 0}]},
        "every message of the assistant has weight 0: there is nothing to learn",
    ),
    "tools that are none": ({"messages": [USER, ANSWER], "tools": "add"}, "tools: no JSON: 'add'"),
    "a tool without a name": ({"messages": [USER, ANSWER], "tools": [{}]}, "tool 1 has no name"),
    "two tools of one name": (
        {"messages": [USER, ANSWER], "tools": [ADD, ADD]},
        "two tools are called 'add'",
    ),
    "a broken call of ShareGPT": (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": "b"},
            ]
        },
        "message 2: the call: no JSON: 'b'",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_row_that_cannot_be_learnt_from_is_one_sentence(kind):
    row, wanted = WRONG[kind]
    with pytest.raises(ValueError) as caught:
        read_chat(row)
    assert str(caught.value).startswith(wanted) or wanted in str(caught.value)
    assert "\n" not in str(caught.value)
