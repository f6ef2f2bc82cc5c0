"""`@tool`: schemas from hints, arguments converted and checked before a method runs."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.tool import Tool, ToolError, tool, tools_of


class Base:
    @tool
    async def first(self, a: int, b: float = 1.5) -> int:
        """the first line

        and more that the policy is not told
        """
        return a

    def no_tool(self) -> None: ...


class Desk(Base):
    @tool
    def second(self, text: str, note: str | None = None) -> str:
        return text

    @tool
    async def third(self, kind: Literal["x", "y"], tags: list[int], flag: bool) -> str:
        return kind


TOOLS = tools_of(Desk)


def test_only_marked_methods_are_tools_inherited_first_in_written_order():
    assert list(TOOLS) == ["first", "second", "third"]


def test_the_schema_is_hints_and_first_docstring_line():
    schema = TOOLS["first"].schema
    assert (schema.name, schema.description) == ("first", "the first line")
    assert schema.parameters == {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "number", "default": 1.5}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert TOOLS["second"].schema.description == ""


def test_async_and_sync_methods_are_told_apart():
    assert (TOOLS["first"].is_async, TOOLS["second"].is_async) == (True, False)


@pytest.mark.parametrize(
    ("name", "given_", "wanted"),
    [
        ("first", {"a": "3"}, {"a": 3, "b": 1.5}),
        ("first", {"a": 3, "b": "2"}, {"a": 3, "b": 2.0}),
        ("second", {"text": "007"}, {"text": "007", "note": None}),
        ("second", {"text": "[1]", "note": "n"}, {"text": "[1]", "note": "n"}),
        (
            "third",
            {"kind": "x", "tags": "[1, 2]", "flag": "true"},
            {"kind": "x", "tags": [1, 2], "flag": True},
        ),
    ],
)
def test_text_arguments_become_the_hinted_types(name, given_, wanted):
    assert TOOLS[name].parse(given_) == wanted


def test_an_optional_text_argument_of_digits_stays_text():
    assert TOOLS["second"].parse({"text": "a", "note": "731"})["note"] == "731"


@pytest.mark.parametrize(
    ("name", "given_", "where"),
    [
        ("first", {}, "first: argument a"),
        ("first", {"a": "x"}, "first: argument a"),
        ("first", {"a": 1, "c": 2}, "first: argument c"),
        ("second", {"text": 5}, "second: argument text"),
        ("third", {"kind": "z", "tags": [], "flag": True}, "third: argument kind"),
        ("third", {"kind": "x", "tags": ["q"], "flag": True}, "third: argument tags.0"),
    ],
)
def test_arguments_that_do_not_fit_are_one_sentence_for_the_policy(name, given_, where):
    with pytest.raises(ToolError) as caught:
        TOOLS[name].parse(given_)
    assert str(caught.value).startswith(where)
    assert "\n" not in str(caught.value)


def test_half_a_letter_in_json_that_was_written_as_text_is_its_escape():
    class Keeps:
        @tool
        async def keep(self, facts: dict[str, Any]) -> None: ...

    given_ = {"facts": '{"a": ["\\ud800"]}'}
    assert tools_of(Keeps)["keep"].parse(given_) == {"facts": {"a": [r"\ud800"]}}


def test_text_nested_too_deep_for_json_is_refused_as_an_argument():
    with pytest.raises(ToolError, match="argument a"):
        TOOLS["first"].parse({"a": "[" * 100_000})


def test_an_argument_without_a_hint_is_the_authors_mistake():
    def untyped(self, a): ...

    with pytest.raises(TypeError, match="argument 'a' needs a type hint"):
        Tool(untyped)


@given(st.text())
def test_a_text_argument_reaches_the_method_unchanged(text):
    assert TOOLS["second"].parse({"text": text})["text"] == text


@given(
    st.dictionaries(
        st.sampled_from(["kind", "tags", "flag", "other"]),
        st.one_of(st.text(max_size=8), st.integers(), st.none(), st.lists(st.integers())),
    )
)
def test_any_arguments_are_either_accepted_whole_or_refused_with_a_tool_error(arguments):
    try:
        parsed = TOOLS["third"].parse(arguments)
    except ToolError:
        return
    assert set(parsed) == {"kind", "tags", "flag"}
