"""`dorado env play`: a person in the policy's place, in a terminal or through a pipe.

A line is a tool call, `tool(argument=value)`, or plain text, or one of the commands that begin with a
colon. A line that cannot be read costs nothing: it is answered with a hint. Prompts and hints are the
game's; what the environment says stands after the name of who says it. The person may be the environment's
user as well (`Person`).
"""

import ast
import asyncio
import contextlib
import difflib
import itertools
import json
import keyword
import queue
import textwrap
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from envs.deadline import paused
from envs.dynamic_tool import as_object
from envs.env import Env, EnvConfig, Task
from envs.message import JsonObject, Message, ToolCall, ToolSchema
from envs.process_end import ends_refused
from envs.registry import BadSettings, UnknownEnv, find_playable, made, settings_of
from envs.session import Deadlines, EnvSession
from envs.text import told
from envs.user import Fact, Said
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.plugin_check import check_plugins

T = TypeVar("T")
HELP = "tool(argument=value) calls a tool, other text is your answer; :tools, :say TEXT, :quit"
END = ":end"
_WHEN = {"freely": "", "asked": ", only when asked", "never": ", to nobody"}
_WORDS = {"true": True, "false": False, "null": None}


class Unreadable(Exception):
    """A line that is no move; the message is a hint."""


@dataclass(frozen=True)
class Say:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Command:
    """`:quit` or `:tools`."""

    name: str


@ends_refused()
def find_task(
    name: str, config: Mapping[str, Any], seed: int, difficulty: int | None
) -> tuple[type[Env], EnvConfig, Task]:
    """The environment and the first task of a seed. Raises ConfigError."""
    values = dict(config)
    check_plugins([EnvTable(id=name, config=values)])
    try:
        env_class = find_playable(name)
        if difficulty is not None:
            if "difficulty" not in env_class.config_type.model_fields:
                raise ConfigError(f"--difficulty: environment {name!r} is not graded")
            values["difficulty"] = difficulty
        settings = settings_of(env_class, values)
        pattern = made(env_class, settings)
    except UnknownEnv as error:
        raise ConfigError(str(error)) from None
    except BadSettings as error:
        raise ConfigError(f"environment {name!r}: {error}") from None
    try:
        task = next(itertools.islice(pattern.tasks("train", seed), 1), None)
    except Exception as error:  # an author's code
        raise ConfigError(f"environment {name!r}: tasks() raises {told(error)}") from None
    if task is None:
        raise ConfigError(f"environment {name!r} has no task")
    return env_class, settings, task


def read_line(line: str, tools: Mapping[str, ToolSchema]) -> ToolCall | Say | Command:
    """The move that a person wrote, e.g. `add(a=2, b=3)`. Raises Unreadable."""
    text = line.strip()
    if text.startswith(":say "):
        return Say(text[5:].strip())
    if text.startswith(":"):
        if text[1:] in ("quit", "tools"):
            return Command(text[1:])
        raise Unreadable(f"no command {text}: there are :tools, :say TEXT and :quit")
    name = text.partition("(")[0].strip()
    # Names of servers' tools can have any form, such as `get-sum`; elsewhere a bracket is part of a text.
    is_call = name in tools or name.isidentifier() or _close_name(name, tools)
    if not (is_call and "(" in text):
        if name in tools:
            raise Unreadable(f"to call {name}, write {_example(tools[name])}")
        if not text:
            raise Unreadable(f"an empty line is no move: {HELP}")
        return Say(text)
    if name not in tools:
        known = ", ".join(tools) or "none"
        raise Unreadable(f"no tool {name!r}, there are {known}; :say {text} answers with this text")
    return ToolCall(name, _arguments(text, tools[name]))


def _arguments(text: str, tool: ToolSchema) -> JsonObject:
    """The arguments of a call, by name or in their order; a bare word is text."""
    names = list(tool.parameters.get("properties", {}))
    try:
        whole_call = ast.parse(f"tool({text.partition('(')[2]}", mode="eval")
        node = _JsonWords().visit(whole_call).body
    except (SyntaxError, ValueError):
        node = None
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        whole = _as_object(node.args[0])
        if whole is not None and set(whole) <= set(names):
            return whole
    if not isinstance(node, ast.Call) or any(one.arg is None for one in node.keywords):
        raise Unreadable(f"cannot read the arguments: write {_example(tool)}, texts in quotes")
    if len(node.args) > len(names):
        raise Unreadable(f"{tool.name} takes {len(names)} arguments: write {_example(tool)}")
    arguments = {name: _value(one, tool) for name, one in zip(names, node.args, strict=False)}
    return arguments | {str(one.arg): _value(one.value, tool) for one in node.keywords}


def _close_name(name: str, tools: Mapping[str, ToolSchema]) -> bool:
    """True for a slip of a name that is no Python name, such as `get-sun`."""
    return " " not in name and bool(difflib.get_close_matches(name, tools, n=1, cutoff=0.8))


def _as_object(node: ast.expr) -> JsonObject | None:
    """All arguments as one object, for names that Python has other uses for: `find({"from": "a"})`."""
    if not isinstance(node, ast.Dict):
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


class _JsonWords(ast.NodeTransformer):
    """Reads `true`, `false` and `null` inside of lists and objects."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node


def _value(node: ast.expr, tool: ToolSchema) -> Any:
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise Unreadable(
            f"{ast.unparse(node)} is no value: write {_example(tool)}, texts in quotes"
        ) from None


def _example(tool: ToolSchema) -> str:
    """E.g. `find(customer="...")`."""
    shown = {
        "string": '"..."',
        "integer": "1",
        "number": "1.5",
        "boolean": "true",
        "array": "[...]",
    }
    values = {
        name: shown.get(str(as_object(schema).get("type")), "...")
        for name, schema in tool.parameters.get("properties", {}).items()
    }
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in values):
        return f"{tool.name}({', '.join(f'{name}={value}' for name, value in values.items())})"
    return f"{tool.name}({{{', '.join(f'{json.dumps(k)}: {v}' for k, v in values.items())}}})"


class Person:
    """A person in the user's place (`envs.user.User`): a line is what they say, `:end TEXT` the last one."""

    def __init__(self, line: Callable[[], Future[str]], write: Callable[[str], None]) -> None:
        """line: the next one that they type."""
        self.line = line
        self.write = write

    async def open(self, goal: str, facts: Sequence[Fact] = (), profile: str = "") -> Said:
        self.write(f"you are the user, too; {END} TEXT is the last that you say")
        self.write(f"  you want: {goal}" + (f" ({profile})" if profile else ""))
        for fact in facts:
            self.write(f"  you tell{_WHEN[fact.when]}: {fact.name}: {fact.value}")
        return await self._says()

    async def answer(self, text: str) -> Said:
        return await self._says()

    async def _says(self) -> Said:
        with paused():
            line = await asyncio.wrap_future(self.line())
        ended = line.split(" ")[0] == END
        return Said(line.removeprefix(END).strip() if ended else line, "a person", ended=ended)


class Player:
    """One episode played by a person; the environment lives on an event loop in a thread of its own,
    so that it goes on while the person thinks."""

    def __init__(
        self,
        env: Env,
        read: Callable[[], str],
        write: Callable[[str], None],
        *,
        user: bool = False,
    ) -> None:
        """user: the person speaks for the environment's user, too."""
        # What the loop's thread wants of this one: a line of the user's, or None when an act has ended.
        self.wanted: queue.SimpleQueue[Future[str] | None] = queue.SimpleQueue()
        person = Person(self._wanted_line, write) if user else None
        self.session = EnvSession(env, Deadlines(), person)
        self.read = read
        self.write = write
        self.tools: dict[str, ToolSchema] = {}
        self.loop = asyncio.new_event_loop()

    @ends_refused()
    def play(self, task: Task) -> dict[str, float]:
        """Play until the episode or the person ends it; returns the rewards. Raises EnvFault, HostFault."""
        thread = threading.Thread(target=self.loop.run_forever, daemon=True, name="dorado-play")
        thread.start()
        try:
            self._open(task)
            while not self._move():
                pass
            return self._await(self.session.score())
        finally:
            with contextlib.suppress(Exception):  # the first fault is the one to tell
                self._await(self.session.close())
            self.loop.call_soon_threadsafe(self.loop.stop)
            thread.join(5.0)

    def _open(self, task: Task) -> None:
        opening = self._await(self.session.open(task))
        self.tools = {tool.name: tool for tool in opening.tools}
        self._show(opening.messages)
        self._show_tools()
        self.write(HELP)

    def _move(self) -> bool:
        """One line of the person's; True where the episode is over."""
        try:
            move = read_line(self.read(), self.tools)
        except Unreadable as hint:
            self.write(f"hint: {hint}")
            return False
        except EOFError:
            return True
        if isinstance(move, Command):
            if move.name == "tools":
                self._show_tools()
            return move.name == "quit"
        text, calls = (move.text, ()) if isinstance(move, Say) else ("", (move,))
        result = self._await(self.session.step(text, calls))
        self._show(result.messages)
        return result.done

    def _show(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            self.write(f"{message.role}: {message.content}")

    def _show_tools(self) -> None:
        for tool in self.tools.values():
            described = textwrap.indent(tool.description, "    ").strip()
            self.write(f"  {_example(tool)}  {described}")
            self.write(f"    {json.dumps(tool.parameters, ensure_ascii=False)}")

    def _await(self, act: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(act, self.loop)
        future.add_done_callback(lambda _: self.wanted.put(None))
        while (line := self.wanted.get()) is not None:
            line.set_result(self._line_of_user())
        return future.result()

    def _wanted_line(self) -> Future[str]:
        line: Future[str] = Future()
        self.wanted.put(line)
        return line

    def _line_of_user(self) -> str:
        """Read what the person says for the user; the end of the input is the end of the conversation."""
        try:
            while True:
                self.write("what does the user say?")
                if line := self.read().strip():
                    return line
        except EOFError:
            return END
