"""The tools of a class: arguments, names and descriptions of every kind that an author writes, and what is
refused."""

import asyncio
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from envs.env import Env, EnvConfig, Task
from envs.message import Message, ToolCall
from envs.session import Deadlines, EnvSession
from envs.tool import tool, tools_of
from envs.tool_arguments import ToolMistake


def logged(method):
    @functools.wraps(method)
    async def inner(*args, **kwargs):
        return await method(*args, **kwargs)

    return inner


def hiding(method):
    def inner(self, *args, **kwargs):
        return method(self, *args, **kwargs)

    return inner


class Place(BaseModel):
    x: int
    y: int = 0


class Desk(Env):
    """Tools of every kind."""

    name = "desk"

    async def reset(self, task: Task) -> list[Message]:
        return [Message("user", "go")]

    @tool
    async def typed(
        self,
        n: Annotated[int, Field(ge=2, description="how many")],
        label: Annotated[str, "any word"] = "a",
        k: int = Field(3, le=5),
        from_: Annotated[str, Field(alias="from")] = "here",
    ) -> list[object]:
        """Order things
        by number.

        Not for the policy.

        Args:
            n: shadowed by the field's own
            k (int): the size,
                in inches
            from_: where from
        """
        return [n, label, k, from_]

    @tool
    async def odd(self, _mode: str, __deep: int, model_config: int, schema: str = "s") -> str:
        """odd names"""
        return f"{_mode} {__deep} {model_config} {schema}"

    @tool
    @staticmethod
    def fixed(a: int) -> int:
        """of no instance"""
        return 2 * a

    @classmethod
    @tool
    def of_class(cls, a: int) -> str:
        """of the class"""
        return f"{cls.__name__} {a}"

    @tool
    @logged
    async def outer(self, a: int, kind: Literal["u", "v"] = "u") -> Place:
        """a decorated one"""
        return Place(x=a)

    @logged
    @tool(read_only=True)
    async def inner(self, a: int) -> int:
        """decorated above"""
        return a

    @tool
    def placed(self, a: int, /, b: int = 2) -> list[int]:
        """by place"""
        return [a, b]

    @tool
    def later(self, a: int) -> Any:
        """a plain def that hands back what has to be awaited"""
        return asyncio.sleep(0, {"a": a})

    @tool
    async def twice(self, a: int) -> Any:
        """an async def that does so"""
        return asyncio.sleep(0, a)

    @tool
    async def loose(self, a: str | None, b: int | str, c: Any, n: int = None) -> str:  # type: ignore # noqa: RUF013
        """hints that take text and more"""
        return repr((a, b, c, n))


class Changed(Desk):
    """Overrides without marks."""

    name = "changed"
    fixed = None  # type: ignore[assignment]

    async def inner(self, a: int, more: int = 5) -> int:  # type: ignore[override]
        return a + more


async def said(env_class: type[Env], name: str, **arguments: Any) -> str:
    session = EnvSession(env_class(EnvConfig()), Deadlines())
    await session.open(Task(env_class.name, {}))
    return (await session.step("", (ToolCall(name, arguments),))).messages[0].content


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("typed", {"n": "3", "from": "z"}, '[3, "a", 3, "z"]'),
        ("typed", {"n": 1}, "error: typed: argument n: input should be greater than or equal to 2"),
        ("typed", {"n": 2, "k": 6}, "error: typed: argument k: input should be less than or equ"),
        ("odd", {"_mode": "m", "__deep": 1, "model_config": "2"}, "m 1 2 s"),
        ("fixed", {"a": "2"}, "4"),
        ("of_class", {"a": 1}, "Desk 1"),
        ("outer", {"a": 1}, '{"x": 1, "y": 0}'),
        ("outer", {"a": 1, "kind": "w"}, "error: outer: argument kind: input should be 'u' or 'v'"),
        ("inner", {"a": 1}, "1"),
        ("placed", {"a": 1, "b": "3"}, "[1, 3]"),
        ("later", {"a": 1}, '{"a": 1}'),
        ("twice", {"a": 1}, "1"),
        ("loose", {"a": "null", "b": "5", "c": "[1]"}, "(None, 5, [1], None)"),
        ("loose", {"a": "731", "b": "true", "c": "NaN"}, "('731', 'true', 'NaN', None)"),
        ("loose", {"a": '"q"', "b": "x5", "c": "t", "n": "null"}, "('\"q\"', 'x5', 't', None)"),
        ("loose", {"a": None, "b": 5, "c": {}}, "(None, 5, {}, None)"),
    ],
)
async def test_a_call_reaches_the_method_as_it_was_written(name, arguments, text):
    assert (await said(Desk, name, **arguments)).startswith(text)


async def test_an_override_without_a_mark_stays_a_tool_and_none_takes_one_back():
    assert await said(Changed, "inner", a=1) == "6"
    assert await said(Changed, "fixed", a=1) == "error: no tool 'fixed'"
    tools = tools_of(Changed)
    assert list(tools["inner"].schema.parameters["properties"]) == ["a", "more"]
    assert tools["inner"].options.read_only
    assert tools["inner"].schema.description == "decorated above"


def test_what_hints_and_docstring_say_of_an_argument_is_in_the_schema():
    schema = tools_of(Desk)["typed"].schema
    assert schema.description == "Order things by number."
    assert schema.parameters["properties"] == {
        "n": {"type": "integer", "minimum": 2, "description": "how many"},
        "label": {"type": "string", "default": "a", "description": "any word"},
        "k": {"type": "integer", "default": 3, "maximum": 5, "description": "the size, in inches"},
        "from": {"type": "string", "default": "here", "description": "where from"},
    }


@pytest.mark.parametrize(
    "docstring",
    [
        "Add.\n\nArgs:\n    a: the first\n      of two\n    b, c (int): more\n\nReturns:\n    sum",
        "Add.\nArguments:\n  a: the first of two\n  b: more\n  c: more",
        "Add.\n\nParameters\n----------\na : int\n    the first\n    of two\nb, c : int\n    more\n",
        "Add.\n\n:param a: the first\n    of two\n:param int b: more\n:param c: more\n:returns: sum",
        "Add.\n\n@param a: the first of two\n@param b: more\n@param c: more",
    ],
)
def test_every_style_of_docstring_describes_the_arguments(docstring):
    async def add(self, a: int, b: int, c: int = 0) -> int:
        return a + b + c

    add.__doc__ = docstring
    schema = tools_of(type("Adder", (), {"add": tool(add)}))["add"].schema
    assert schema.description == "Add."
    told = [one["description"] for one in schema.parameters["properties"].values()]
    assert told == ["the first of two", "more", "more"]


async def _many(self, *xs: int) -> int:
    return sum(xs)


async def _options(self, a: int, **options: str) -> int:
    return a


async def _untyped(self, a) -> int:
    return a


async def _called(self, what: Callable[[], int]) -> int:
    return what()


async def _described(self, a: "a number") -> int:  # type: ignore # noqa: F722
    return a


async def _twice(self, a: Annotated[int, Field(alias="b")], b: int) -> int:
    return a


async def _plain(self) -> int:
    return 1


async def _yields(self):
    yield 1


def _alone() -> int:
    return 1


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("f", lambda: tool(_many), "argument '*xs' stands for any number of them"),
        ("f", lambda: tool(_options), "argument '**options' stands for any number"),
        ("f", lambda: tool(_untyped), "argument 'a' needs a type hint, such as str"),
        ("f", lambda: tool(_called), "argument 'what': collections.abc.Callable"),
        ("f", lambda: tool(_described), "argument 'a': its hint 'a number' is no type"),
        ("f", lambda: tool(_twice), "two arguments are called 'b'"),
        ("f", lambda: tool(_yields), "yields: a tool returns its result, all of it at once"),
        ("f", lambda: tool(_alone), "has no `self` as its first argument"),
        ("f", lambda: tool(hiding(_plain)), "argument '*args' stands for any number"),
        ("_plain", lambda: hiding(tool(_plain)), "a decorator above @tool hides it"),
        ("f", lambda: property(tool(_plain)), "is no method but of type property"),
        ("f", lambda: tool(property(_plain)), "@tool belongs above a method, not at a property"),
        ("f", lambda: tool("f"), "not at a str; its options go by name"),  # type: ignore
        ("f", lambda: tool(seconds=0)(_plain), "the limit has to be a number above 0"),
        ("inner", lambda: 5, "is no method but of type int"),
        ("close", lambda: tool(_plain), "'close' is a name of the environment protocol's own"),
        ("score", lambda: tool(_plain), "such as score_it"),
        ("done", lambda: tool(_plain), "'done' is a name of the environment protocol's own"),
    ],
)
def test_what_cannot_be_offered_is_refused_when_the_class_is_made(name, make, sentence):
    with pytest.raises(ToolMistake) as caught:
        type("Bad", (Desk,), {name: make()})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hint_that_is_defined_below_is_read_at_the_first_use():
    async def look(self, at: "Below") -> str:  # type: ignore # noqa: F821
        return at

    late = type("Late", (Desk,), {"look": tool(look)})
    with pytest.raises(ToolMistake, match="argument 'at': its hint 'Below' is not known"):
        tools_of(late)
    globals()["Below"] = str
    try:
        assert tools_of(late)["look"].schema.parameters["properties"] == {"at": {"type": "string"}}
    finally:
        del globals()["Below"]
