"""Tool calls as text: both formats, several calls, malformed ones, and a round trip."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.message import ToolCall
from rollout.format import FORMATS
from rollout.reading import MOST_BROKEN, read
from rollout.tool_format import MalformedCall

ADD = ToolCall("add", {"a": "2", "b": "3"})
MARKS = ("longcat_tool_call>", "longcat_arg_key>", "longcat_arg_value>", "tool_call>")


def parse_calls(text, style, *, thinking=False):
    """(answer, calls) of a completion."""
    found = read(text, (), FORMATS[style], thinking=thinking)
    if found.malformed:
        raise MalformedCall(found.malformed)
    return found.answer, found.calls


def longcat(call: ToolCall) -> str:
    pairs = "".join(
        f"<longcat_arg_key>{key}</longcat_arg_key><longcat_arg_value>{value}</longcat_arg_value>"
        for key, value in call.arguments.items()
    )
    return f"<longcat_tool_call>{call.name}{pairs}</longcat_tool_call>"


def hermes(call: ToolCall) -> str:
    body = json.dumps({"name": call.name, "arguments": call.arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


WRITERS = {"longcat": longcat, "hermes": hermes}
both = pytest.mark.parametrize("style", ["longcat", "hermes"])


@both
def test_plain_text_has_no_calls(style):
    assert parse_calls("  42\n", style) == ("42", ())


@both
def test_one_call_alone(style):
    assert parse_calls(WRITERS[style](ADD), style) == ("", (ADD,))


@both
def test_several_calls_keep_their_order_and_the_text_around_them(style):
    second = ToolCall("find", {"customer": "mira"})
    text = f"First {WRITERS[style](ADD)} then {WRITERS[style](second)} so."
    assert parse_calls(text, style) == ("First  then  so.", (ADD, second))


@both
def test_a_call_without_arguments(style):
    assert parse_calls(WRITERS[style](ToolCall("stop", {})), style)[1] == (ToolCall("stop", {}),)


def test_hermes_keeps_json_types_and_may_leave_arguments_out():
    text = '<tool_call>{"name": "f", "arguments": {"n": 2, "on": true, "of": [1, {"k": null}]}}</tool_call>'
    call = ToolCall("f", {"n": 2, "on": True, "of": [1, {"k": None}]})
    assert parse_calls(text, "hermes") == ("", (call,))
    assert parse_calls('<tool_call>{"name": "f"}</tool_call>', "hermes")[1] == (ToolCall("f", {}),)


def test_longcat_also_reads_a_json_object_between_its_marks():
    text = '<longcat_tool_call>\n{"name": "f", "arguments": {"n": 2}}\n</longcat_tool_call>'
    assert parse_calls(text, "longcat") == ("", (ToolCall("f", {"n": 2}),))


def test_longcat_allows_white_space_between_name_and_pairs():
    text = (
        "<longcat_tool_call>add\n<longcat_arg_key>a</longcat_arg_key>\n"
        "<longcat_arg_value>2</longcat_arg_value>\n</longcat_tool_call>"
    )
    assert parse_calls(text, "longcat")[1] == (ToolCall("add", {"a": "2"}),)


def test_the_marks_of_one_format_are_plain_text_in_the_other():
    assert parse_calls(longcat(ADD), "hermes") == (longcat(ADD), ())
    assert parse_calls(hermes(ADD), "longcat") == (hermes(ADD), ())


@pytest.mark.parametrize(
    ("style", "text", "sentence"),
    [
        ("longcat", "<longcat_tool_call>add", "has to end with </longcat_tool_call>"),
        ("longcat", "add</longcat_tool_call>", "without <longcat_tool_call> before it"),
        ("longcat", "<longcat_tool_call></longcat_tool_call>", "name of a tool"),
        (
            "longcat",
            "<longcat_tool_call>add<longcat_arg_key>a</longcat_arg_key></longcat_tool_call>",
            "pairs of longcat_arg_key and longcat_arg_value",
        ),
        (
            "longcat",
            "<longcat_tool_call>add<longcat_arg_key>a</longcat_arg_key>"
            "<longcat_arg_value>1</longcat_arg_value> and so on</longcat_tool_call>",
            "pairs of longcat_arg_key and longcat_arg_value",
        ),
        ("longcat", '<longcat_tool_call>{"name": </longcat_tool_call>', "one JSON object"),
        ("longcat", longcat(ADD) + "<longcat_tool_call>", "has to end with"),
        ("hermes", "<tool_call>{}", "has to end with </tool_call>"),
        ("hermes", "{}</tool_call>", "without <tool_call> before it"),
        ("hermes", "<tool_call>add(1)</tool_call>", "one JSON object"),
        ("hermes", "<tool_call>{}</tool_call>", 'needs a "name"'),
        ("hermes", '<tool_call>["add"]</tool_call>', 'needs a "name"'),
        ("hermes", '<tool_call>{"name": 3}</tool_call>', 'needs a "name"'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "a JSON object"),
        ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>", "one JSON object"),
    ],
)
def test_a_call_that_cannot_be_read_is_malformed_with_a_sentence(style, text, sentence):
    with pytest.raises(MalformedCall) as caught:
        parse_calls(text, style)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("value", ["  indented", "line\n", " "])
def test_white_space_at_the_ends_of_an_argument_is_part_of_it(value):
    call = ToolCall("write", {"text": value})
    assert parse_calls(longcat(call), "longcat")[1] == (call,)


@pytest.mark.parametrize(
    "value",
    [
        "</tool_call>",
        "<tool_call>",
        '"</tool_call>"',
        "{</tool_call>",
        "a\n</tool_call>\n",
        "<think>",
    ],
)
def test_a_mark_inside_a_json_string_is_part_of_the_string(value):
    calls = (ToolCall("write", {"text": value}), ToolCall("read", {"path": "a"}))
    assert parse_calls("".join(map(hermes, calls)), "hermes") == ("", calls)
    longcat_value = value.replace("tool_call", "longcat_tool_call")
    body = json.dumps({"name": "write", "arguments": {"text": longcat_value}})
    written = f"<longcat_tool_call>{body}</longcat_tool_call>"
    assert parse_calls(written, "longcat")[1] == (ToolCall("write", {"text": longcat_value}),)


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('"name": "f", "parameters": {"n": 2}', {"n": 2}),
        ('"parameters": {"n": 2}, "name": "f"', {"n": 2}),
        ('"name": "f", "arguments": "{\\"n\\": 2}"', {"n": 2}),
        ('"name": "f", "arguments": null', {}),
        ('"id": "1", "type": "function", "name": "f", "arguments": {"n": 2}', {"n": 2}),
    ],
)
def test_arguments_have_more_than_one_spelling_and_are_never_lost(body, arguments):
    found = parse_calls(f"<tool_call>{{{body}}}</tool_call>", "hermes")
    assert found == ("", (ToolCall("f", arguments),))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('"name": "f", "args": {"n": 2}', 'are its "arguments", not its "args"'),
        ('"name": "f", "parameters": [2]', "have to be a JSON object"),
        ('"name": "f", "parameters": {}, "arguments": {"n": 2}', "not both"),
        ('"name": "f", "arguments": "n = 2"', "one JSON object"),
    ],
)
def test_arguments_that_cannot_be_read_are_malformed_and_not_dropped(body, sentence):
    with pytest.raises(MalformedCall, match=sentence):
        parse_calls(f"<tool_call>{{{body}}}</tool_call>", "hermes")


DELETE = ToolCall("delete_all", {})
THOUGHTS = [
    ("<think>or {call}?</think>4", False, "or {call}?", "4"),
    ("<think>or {call}? 4", False, "or {call}? 4", ""),
    ("or {call}?</think>4", True, "or {call}?", "4"),
    ("or {call}? 4", True, "or {call}? 4", ""),
    ("or {call}?</think>4", False, "or {call}?", "4"),  # a prompt that is not known to open one
    ("Hm. <think>or {call}?</think> 4", False, "or {call}?", "Hm.  4"),
    ("<think>one</think>so <think>{call}</think>4", False, "one\n{call}", "so 4"),
    ("<think></think>4", False, "", "4"),
    ("[THINK]or {call}?[/THINK]4", False, "or {call}?", "4"),
    ("<longcat_think>or {call}?</longcat_think>4", False, "or {call}?", "4"),
    ("<think><think>{call}</think>4", False, "<think>{call}", "4"),
    ("<think>{call_cut}</think>4", False, "{call_cut}", "4"),
    ("{call_cut} and so on</think>4", False, "{call_cut} and so on", "4"),
]


@both
@pytest.mark.parametrize(("text", "thinking", "thought", "answer"), THOUGHTS)
def test_a_call_inside_a_thought_is_none_and_the_thought_is_no_answer(
    style, text, thinking, thought, answer
):
    call = WRITERS[style](DELETE)
    parts = {"call": call, "call_cut": call[: len(call) // 2]}
    written = text.format(**parts)
    assert parse_calls(written, style, thinking=thinking) == (answer, ())
    found = read(written, (), FORMATS[style], thinking=thinking)
    assert (found.reasoning, found.answer) == (thought.format(**parts), answer)


@both
def test_a_call_after_a_thought_is_made(style):
    text = f"<think>I should look.</think>\n\n{WRITERS[style](ADD)}"
    assert parse_calls(text, style) == ("", (ADD,))


words = st.text(min_size=1, max_size=20).filter(
    lambda s: s == s.strip() and not any(mark in s for mark in MARKS)
)
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.heavy
@given(st.lists(st.builds(ToolCall, names, st.dictionaries(names, words, max_size=4)), max_size=4))
def test_longcat_reads_back_what_was_written(calls):
    plain, read = parse_calls("".join(map(longcat, calls)), "longcat")
    assert (plain, read) == ("", tuple(calls))


@given(
    st.lists(
        st.builds(ToolCall, names, st.dictionaries(words, json_values, max_size=4)), max_size=4
    )
)
def test_hermes_reads_back_what_was_written(calls):
    plain, read = parse_calls("".join(map(hermes, calls)), "hermes")
    assert (plain, read) == ("", tuple(calls))


fragments = st.sampled_from(
    [
        "<longcat_tool_call>",
        "</longcat_tool_call>",
        "<longcat_arg_key>",
        "</longcat_arg_key>",
        "<longcat_arg_value>",
        "</longcat_arg_value>",
        "<tool_call>",
        "</tool_call>",
        '{"name": "f"}',
        "add",
        " ",
        "{",
    ]
)


@given(st.lists(fragments, max_size=12), st.sampled_from(["longcat", "hermes"]))
def test_any_text_is_either_read_or_malformed(parts, style):
    try:
        plain, calls = parse_calls("".join(parts), style)
    except MalformedCall:
        return
    opening = {"longcat": "<longcat_tool_call>", "hermes": "<tool_call>"}[style]
    assert opening not in plain
    assert len(calls) == parts.count(opening) and all(call.name for call in calls)


def test_a_long_broken_call_is_read_in_time_that_grows_with_its_length(monkeypatch):
    """A policy that repeats itself writes such; every episode of its process waits meanwhile."""
    text = '<longcat_tool_call>{"a": "' + 'x{\\"' * 5_000
    looks: list[int] = []
    decode = json.JSONDecoder.raw_decode

    def counted(self, given, at=0):
        looks.append(at)
        return decode(self, given, at)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    found = read(text, (), FORMATS["longcat"])
    assert found.malformed and not found.calls and len(looks) <= 2 * MOST_BROKEN


@pytest.mark.parametrize(
    "arguments", ['{"a": NaN}', '{"a": [1e999]}', '{"a": %s}' % ("[" * 200 + "]" * 200)]
)
@pytest.mark.parametrize("style", ["longcat", "hermes"])
def test_a_call_that_no_tool_could_be_sent_is_malformed(style, arguments):
    marks = {"longcat": "longcat_tool_call", "hermes": "tool_call"}[style]
    with pytest.raises(MalformedCall, match=r"add: .*(finite|nest)"):
        parse_calls(f'<{marks}>{{"name": "add", "arguments": {arguments}}}</{marks}>', style)
    with pytest.raises(MalformedCall, match="has to name a tool"):
        parse_calls(f'<{marks}>{{"name": " ", "arguments": {{}}}}</{marks}>', style)
