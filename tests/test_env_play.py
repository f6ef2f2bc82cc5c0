"""`dorado env play`: what a person types, and what comes back."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from envs.message import ToolCall, ToolSchema
from envs.tool import tool, tools_of
from rl.cli import app
from rl.env_tools.play import Command, Say, Unreadable, read_line

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent


class Tools:
    @tool
    async def add(self, a: int, b: int) -> int:
        """a plus b"""
        return a + b

    @tool
    async def find(self, customer: str, open: bool = True) -> str:
        """a customer's order"""
        return customer


TOOLS = {name: one.schema for name, one in tools_of(Tools).items()}


@pytest.mark.parametrize(
    ("line", "move"),
    [
        ("add(a=2, b=3)", ToolCall("add", {"a": 2, "b": 3})),
        ("  add(2, b=-3) ", ToolCall("add", {"a": 2, "b": -3})),
        ("find(customer=mira)", ToolCall("find", {"customer": "mira"})),
        ("find('mira', open=false)", ToolCall("find", {"customer": "mira", "open": False})),
        ("find()", ToolCall("find", {})),
        ("42", Say("42")),
        ("the answer (I think) is 3", Say("the answer (I think) is 3")),
        (":say add(a=2, b=3)", Say("add(a=2, b=3)")),
        (":quit", Command("quit")),
        (":tools", Command("tools")),
    ],
)
def test_a_line_is_a_call_or_text_or_a_command(line, move):
    assert read_line(line, TOOLS) == move


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("", "an empty line is no move"),
        ("add", "to call add, write add(a=1, b=1)"),
        ("add(a=2", "cannot read the arguments: write add(a=1, b=1), texts in quotes"),
        ("add(2, 3, 4)", "add takes 2 arguments"),
        ("add(**x)", "cannot read the arguments"),
        ("find(customer=mira rosa)", 'write find(customer="...", open=true)'),
        ("find(customer=open('x'))", "open('x') is no value"),
        ("ad(2, 3)", "no tool 'ad', there are add, find; :say ad(2, 3) answers with this text"),
        (":exit", "no command :exit: there are :tools, :say TEXT and :quit"),
    ],
)
def test_a_line_that_cannot_be_read_is_answered_with_a_hint(line, hint):
    with pytest.raises(Unreadable) as caught:
        read_line(line, TOOLS)
    assert hint in str(caught.value)


def play(lines: str, *arguments: str):
    return CliRunner().invoke(app, ["env", "play", *arguments], input=lines)


def test_what_the_machine_lacks_is_said_in_a_sentence():
    done = play("", f"{Path(__file__).parent / 'planted_envs.py'}:MissingServer")
    assert done.exit_code == 1
    assert done.stderr == "error: no server at 127.0.0.1:9\n"


def test_a_whole_episode_through_a_pipe():
    done = play("add(1, 1)\nadd(a=x, b=1)\n:quit\n", "calculator")
    assert done.exit_code == 0, done.output
    assert "user: " in done.output and "add(a=1, b=1)  a plus b" in done.output
    assert "tool: 2\n" in done.output
    assert "tool: error: add: argument a" in done.output
    assert done.output.endswith("rewards: solved 0\n")


def test_a_person_is_the_user_too_who_opens_answers_and_ends():
    asking = ("orders", "--config", '{"user": true}', "--user")
    done = play("cancel it\nwhich customer?\n\nit is mira\ndone\n:end bye bye\n", *asking)
    assert done.exit_code == 0, done.output
    assert "  you want: cancel the order of a customer\n" in done.output
    assert "  you tell, only when asked: customer: " in done.output
    assert re.findall(r"\buser: (.*)", done.output) == ["cancel it", "it is mira", "bye bye"]
    assert play("cancel it\nwhich customer?\n", *asking).output.endswith("rewards: solved 0\n")
    refused = play("", "orders", "--user")
    assert refused.exit_code == 2 and "has no user with these settings" in refused.output


def test_the_end_of_input_ends_the_episode_with_its_rewards():
    assert play("", "calculator").output.endswith("rewards: solved 0\n")


def test_a_seed_chooses_the_task():
    def opening(seed: int) -> str:
        output = play("", "orders", "--seed", str(seed)).output
        return next(line for line in output.splitlines() if line.startswith("user: "))

    assert opening(1) == opening(1)
    assert len({opening(seed) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no_such"], "environment 'no_such' does not exist"),
        (["calculator", "--config", '{"x": 1}'], "config.x: unknown key"),
    ],
)
def test_a_bad_input_says_2(arguments, sentence):
    done = play("", *arguments)
    assert done.exit_code == 2
    assert sentence in done.output


UNGRADED = """
from envs.env import Env
from envs.message import Message

class Plain(Env):
    name = "plain"

    def sample(self, rng):
        return {"n": rng.random()}

    async def reset(self, task):
        return [Message("user", "go")]

    async def score(self):
        raise RuntimeError("the judge is asleep")
"""


@pytest.fixture
def plain(tmp_path: Path) -> str:
    (tmp_path / "plain.py").write_text(UNGRADED, encoding="utf-8")
    return f"{tmp_path}/plain.py:Plain"


def test_a_difficulty_is_for_graded_environments(plain):
    done = play("", plain, "--difficulty", "2")
    assert done.exit_code == 2
    assert "--difficulty: environment" in done.output and "is not graded" in done.output


def test_a_fault_of_the_environment_says_1_with_its_traceback(plain):
    done = play("hello\n", plain)
    assert done.exit_code == 1
    assert "Traceback" in done.output
    assert "error: environment 'plain', score: RuntimeError: the judge is asleep" in done.output


def test_in_a_terminal_lines_can_be_called_back():
    """A call, then the arrow up, which brings it back."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rl", "env", "play", "calculator"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "INPUTRC": "/dev/null"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        rest = _until(ours, "> ", "")
        os.write(ours, b"add(20, 1)\r")
        rest = _until(ours, "> ", _until(ours, "tool: 21", rest))
        os.write(ours, b"\x1b[A\r")
        rest = _until(ours, "> ", _until(ours, "tool: 21", rest))
        os.write(ours, b":quit\r")
        _until(ours, "rewards: solved 0", rest)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _until(terminal: int, text: str, seen: str) -> str:
    """Read on from `seen` until `text` has come; returns what came after it."""
    deadline = time.monotonic() + 60
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"waited for {text!r}, got {seen!r}"
        seen += os.read(terminal, 4096).decode()
    return seen.partition(text)[2]


SERVED = {
    name: ToolSchema(name, "", {"properties": arguments})
    for name, arguments in {
        "get-sum": {"a": {"type": "number"}, "b": {"type": ["number", "null"]}},
        "ns.find": {"from": {"type": "string"}, "max-results": {"type": "integer"}},
        "files/put": {"path": {"type": "string"}, "data": {"type": "object"}},
    }.items()
}


@pytest.mark.parametrize(
    ("line", "move"),
    [
        ("get-sum(a=1, b=null)", ToolCall("get-sum", {"a": 1, "b": None})),
        ("get-sum (1, 2)", ToolCall("get-sum", {"a": 1, "b": 2})),
        (
            'ns.find({"from": "x", "max-results": 3})',
            ToolCall("ns.find", {"from": "x", "max-results": 3}),
        ),
        ("ns.find('x', 3)", ToolCall("ns.find", {"from": "x", "max-results": 3})),
        (
            'files/put("/x", {"k": [true, null]})',
            ToolCall("files/put", {"path": "/x", "data": {"k": [True, None]}}),
        ),
        ("what is (3+4)?", Say("what is (3+4)?")),
        ("x-1(2)", Say("x-1(2)")),
    ],
)
def test_a_servers_tools_are_called_by_any_name(line, move):
    assert read_line(line, SERVED) == move


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("get-sum", "to call get-sum, write get-sum(a=1.5, b=...)"),
        ("ns.find", 'write ns.find({"from": "...", "max-results": 1})'),
        ("get-sun(1)", "no tool 'get-sun', there are get-sum"),
        ("get-sum(a=1", "cannot read the arguments: write get-sum(a=1.5"),
    ],
)
def test_a_servers_tool_that_is_miswritten_gets_a_hint(line, hint):
    with pytest.raises(Unreadable) as caught:
        read_line(line, SERVED)
    assert hint in str(caught.value)
