"""Foreign worlds that misbehave, as stand-ins that speak the wire formats: who is at fault, in which words.

The real packages and servers are in test_interop_packages.py.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import select
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import play
from serving import serving

from envs.env import Task
from envs.interop import gymnasium_server
from envs.interop.gymnasium_server import as_action, plain_colours
from envs.interop.gymnasium_text import GymnasiumText, GymnasiumTextConfig
from envs.interop.interpreter import ChildInterpreter, ForeignError
from envs.interop.mcp_connection import StdioConnection
from envs.interop.mcp_tools import McpConfig, McpEnv
from envs.interop.openenv import OpenEnv, OpenEnvConfig
from envs.interop.reasoning_gym import ReasoningGym, ReasoningGymConfig
from envs.interop.reasoning_gym_server import _level as reasoning_gym_level
from envs.interop.reasoning_gym_server import pack, unpack
from envs.message import Message, ToolCall
from envs.session import Deadlines, EnvFault, EnvSession, HostFault
from rl.config_file import ConfigError
from rl.env_table import EnvTable

pytestmark = pytest.mark.process

# ---------------------------------------------------------------- a child interpreter

SCRIPT = """
import os, subprocess, sys, time
print("noise at import")
def die():
    print("about to die", file=sys.stderr, flush=True)
    os._exit(3)
def garbage():
    os.write(4, b"this is no answer\\n")
def loud():
    print("printed"); os.write(1, b"and more")
    return "quiet"
def refuse():
    raise ValueError("not\\nlike this")
def leave_one_behind():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=4)
    os._exit(4)
def load():
    functions = [die, garbage, loud, refuse, leave_one_behind, os.getpid]
    named = {f.__name__: f for f in functions}
    return {**named, "echo": lambda value: value, "sleep": time.sleep}, {"demo": "1.2"}
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[ChildInterpreter]:
    script = tmp_path / "demo.py"
    script.write_text(SCRIPT, encoding="utf-8")
    made = ChildInterpreter(sys.executable, script, seconds=20)
    yield made
    made.end()


async def test_requests_are_answered_whatever_the_foreign_code_prints(child):
    assert await child.ask("echo", value=[1, {"a": "é"}]) == [1, {"a": "é"}]
    assert await child.ask("loud") == "quiet"
    assert child.ask_now("versions") == {"demo": "1.2"}
    assert await asyncio.gather(*(child.ask("echo", value=n) for n in range(50))) == list(range(50))


async def test_what_the_foreign_code_raises_is_one_sentence_and_the_child_lives_on(child):
    pid = await child.ask("getpid")
    with pytest.raises(ForeignError, match="ValueError: not like this"):
        await child.ask("refuse")
    assert await child.ask("getpid") == pid


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("die", r"which runs demo, died \(exit status 3\)"),
        ("garbage", "wrote what is no answer and was ended: b'this is no answer"),
    ],
)
async def test_a_child_that_dies_or_writes_garbage_is_infrastructure_and_is_started_anew(
    child, method, sentence
):
    first = await child.ask("getpid")
    with pytest.raises(HostFault, match=sentence):
        await child.ask(method)
    assert await child.ask("getpid") != first
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.parametrize(("method", "arguments"), [("sleep", [60]), ("leave_one_behind", [])])
async def test_a_child_that_gives_no_answer_is_ended_with_all_it_started(
    tmp_path, method, arguments
):
    script = tmp_path / "demo.py"
    script.write_text(
        SCRIPT.replace('"sleep": time.sleep', '"sleep": lambda: time.sleep(60)'), encoding="utf-8"
    )
    child = ChildInterpreter(sys.executable, script, seconds=0.5)
    with pytest.raises(HostFault, match=r"gave no answer within 0.5 s and was ended"):
        await child.ask(method)
    assert not child.alive
    child.end()


async def test_the_requests_behind_one_that_kills_the_child_are_answered_by_the_next(child):
    asked = [child.ask("echo", value=1), child.ask("die"), child.ask("echo", value=2)]
    one, dead, two = await asyncio.gather(*asked, return_exceptions=True)
    assert (one, two) == (1, 2)
    assert isinstance(dead, HostFault)


async def test_an_asker_that_goes_away_costs_the_others_nothing(child):
    await child.ask("echo", value=0)
    asker = asyncio.create_task(child.ask("echo", value=1))
    await asyncio.sleep(0)
    asker.cancel()
    assert await child.ask("echo", value=2) == 2


@pytest.mark.parametrize(
    ("python", "script", "sentence"),
    [
        ("/nowhere/python", SCRIPT, "/nowhere/python cannot be started: No such file"),
        (sys.executable, "import absent_package", "No module named 'absent_package'"),
    ],
)
async def test_an_interpreter_that_cannot_serve_says_why(tmp_path, python, script, sentence):
    (tmp_path / "demo.py").write_text(script, encoding="utf-8")
    with pytest.raises(HostFault, match=sentence):
        await ChildInterpreter(python, tmp_path / "demo.py", 20).ask("echo", value=1)


def test_a_child_ends_with_the_process_that_started_it(tmp_path):
    sleeping = SCRIPT.replace('"sleep": time.sleep', '"sleep": lambda: time.sleep(60)')
    (tmp_path / "demo.py").write_text(sleeping, encoding="utf-8")
    program = (
        "import os, sys; from pathlib import Path\n"
        "from envs.interop.interpreter import ChildInterpreter\n"
        f"child = ChildInterpreter(sys.executable, Path({str(tmp_path / 'demo.py')!r}), 20)\n"
        "print(child.ask_now('getpid'), flush=True)\n"
        "child._submit('sleep', {})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", program],
        {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    with os.fdopen(read) as out:
        child = int(out.readline())
    os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):  # gone already
        handle = os.pidfd_open(child)
        assert select.select([handle], [], [], 20)[0] == [handle], "the child goes on"
        os.close(handle)


@pytest.mark.parametrize(
    "value",
    [
        {"a": (1, (2, [3]))},
        {1: "x", (2, 3): None},
        {"s": {1, 2}},
        [{"()": 1}, {"": ()}],
        "text",
        None,
    ],
    ids=repr,
)
def test_an_entry_comes_back_from_json_as_it_was(value):
    assert unpack(json.loads(json.dumps(pack(value)))) == value


def test_colours_of_a_picture_become_tags():
    picture = "a\x1b[41mS\x1b[0mb\x1b[43m \x1b[0m\x1b[1mbold\x1b[0m\x1b[34;1mR\x1b[0m"
    assert plain_colours(picture) == "a<red>S</red>b<yellow> </yellow>bold<blue>R</blue>"
    assert as_action(None, 3) == 3


def test_an_action_that_is_no_element_of_its_space_is_refused_and_no_fault(monkeypatch):
    """As numpy and Gymnasium do: what has no number's form raises."""

    class Space:
        dtype, n, start = int, 3, 0

        def contains(self, action):
            return action == [1, 2]

    class World:
        metadata, render_mode, action_space = {}, None, Space()

        def reset(self, seed):
            return "here", {}

        def step(self, action):
            return "there", 1, True, False, {}

    class Numpy:
        asarray = staticmethod(lambda action, dtype: [dtype(one) for one in action])

    class Gymnasium:
        make = staticmethod(lambda id, **kwargs: World())

    Space.__name__ = "MultiDiscrete"
    found = {"gymnasium": Gymnasium, "numpy": Numpy}
    monkeypatch.setattr(gymnasium_server.importlib, "import_module", found.__getitem__)
    monkeypatch.setattr(gymnasium_server.importlib.metadata, "version", lambda name: "1")
    methods, _ = gymnasium_server.load()
    methods["open"](session="s", id="w", kwargs={}, seed=1)
    for wrong in (["a", "b"], [None, 1], [1]):
        assert (
            "the action has to be one of" in methods["step"](session="s", action=wrong)["refused"]
        )
    assert methods["step"](session="s", action=[1, 2])["done"]


# ---------------------------------------------------------------- an OpenEnv server

GUESS = {
    "title": "GuessAction",
    "type": "object",
    "properties": {"guess": {"type": "integer"}, "metadata": {"type": "object"}},
    "required": ["guess"],
}
MOVES = {
    "oneOf": [{"$ref": "#/$defs/TurnLeftAction"}, {"$ref": "#/$defs/WalkAction"}],
    "$defs": {
        "TurnLeftAction": {
            "title": "TurnLeftAction",
            "properties": {"type": {"const": "left"}},
            "required": ["type"],
        },
        "WalkAction": {
            "title": "WalkAction",
            "description": "walk on\nand on",
            "properties": {"type": {"const": "walk"}, "steps": {"$ref": "#/$defs/Steps"}},
            "required": ["type", "steps"],
        },
        "Steps": {"type": "integer"},
    },
}
TOOLS = {"title": "CallToolAction", "properties": {"tool_name": {}, "arguments": {}}}
Speak = Callable[[dict[str, Any]], Awaitable[Any]]


def seen(reward: float | None = None, done: bool = False, **observation: Any) -> dict[str, Any]:
    data = {"observation": {**observation, "metadata": {}}, "reward": reward, "done": done}
    return {"type": "observation", "data": data}


def refused(code: str, message: str = "no", **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"code": code, "message": message, **more}}


@contextlib.asynccontextmanager
async def openenv(
    speak: Speak, schema: Any = GUESS, hello: Any = None, **settings: Any
) -> AsyncIterator[EnvSession]:
    """A session on a server that answers a message by `speak`: a dict, raw text, or None to hang up.

    hello: what it says instead, before it hangs up at once.
    """
    from websockets.asyncio.server import serve

    def http(connection: Any, request: Any) -> Any:
        pages = {"/schema": {"action": schema}, "/metadata": {"name": "stand-in", "version": "7"}}
        if request.path == "/ws":
            return None
        return connection.respond(200, json.dumps(pages[request.path]))

    async def handle(socket: Any) -> None:
        if hello is not None:
            await socket.send(json.dumps(hello))
            return
        async for text in socket:
            answer = await speak(json.loads(text))
            if answer is None:
                return
            await socket.send(answer if isinstance(answer, str) else json.dumps(answer))

    async with serve(handle, "127.0.0.1", 0, process_request=http) as server:
        port = server.sockets[0].getsockname()[1]
        session = EnvSession(
            OpenEnv(
                OpenEnvConfig(url=f"http://127.0.0.1:{port}/", instructions="guess", **settings)
            ),
            Deadlines(reset_seconds=4.0, tool_seconds=0.5),
        )
        yield session
        await session.close()


START = Task("openenv", {"seed": 3, "reset": {"size": 2}})


async def test_an_episode_by_web_socket_counts_rewards_and_ends_when_the_world_does(monkeypatch):
    heard: list[dict[str, Any]] = []

    async def speak(message: dict[str, Any]) -> Any:
        heard.append(message)
        if message["type"] == "reset":
            return seen(text="1..9")
        right = message["data"].get("guess") == 5
        return seen(reward=1.0 if right else -0.25, done=right, text="yes" if right else "no")

    async with openenv(speak) as session:
        opening = await session.open(START)
        assert [m.content for m in opening.messages] == ["guess\n\n1..9"]
        assert [t.name for t in opening.tools] == ["guess"]
        assert list(opening.tools[0].parameters["properties"]) == ["guess"]
        first = await session.step("", (ToolCall("guess", {"guess": "4"}),))
        last = await session.step("", (ToolCall("guess", {"guess": 5}),))
        assert (first.messages[0].content, first.done) == ("no", False)
        assert (last.messages[0].content, last.done) == ("yes", True)
        assert await session.score() == {"return": 0.75}
        assert session.env.notes == {"openenv": "stand-in 7"}
    assert heard[0] == {"type": "reset", "data": {"seed": 3, "size": 2}}


@pytest.mark.parametrize("turn_rewards", [False, True], ids=["at the end", "by turn"])
async def test_rewards_of_an_openenv_server_are_its_turns_where_a_setting_asks_for_it(turn_rewards):
    """The second turn acts twice; what the reset gave is no turn's."""

    async def speak(message: dict[str, Any]) -> Any:
        if message["type"] == "reset":
            return seen(reward=0.5, text="1..9")
        return seen(reward=float(message["data"]["guess"]), text="no")

    async with openenv(speak, turn_rewards=turn_rewards) as session:
        await session.open(START)
        one, two = (ToolCall("guess", {"guess": n}) for n in (1, 2))
        await session.step("", (one,))
        await session.step("", (two, two))
        found = await session.score()
    assert found == {"return": 5.5}
    assert found.by_turn == ({0: {"return": 1.0}, 1: {"return": 4.0}} if turn_rewards else {})


class Ladder:
    """Stands in for an interpreter: a world of three steps, worth 1, 0 and 2."""

    alive, where = True, "a stand-in"

    def __init__(self) -> None:
        self.left = [1.0, 0.0, 2.0]

    async def ask(self, act: str, **_: Any) -> dict[str, Any]:
        if act == "open":
            return {"text": "go", "action": {"type": "integer", "minimum": 0, "maximum": 1}}
        if act != "step":
            return {}
        return {"text": "on", "reward": self.left.pop(0), "done": not self.left}


@pytest.mark.parametrize("turn_rewards", [False, True], ids=["at the end", "by turn"])
async def test_rewards_of_a_gymnasium_are_its_turns_where_a_setting_asks_for_it(
    turn_rewards, monkeypatch
):
    world = Ladder()
    monkeypatch.setattr(GymnasiumText, "child", world)
    config = GymnasiumTextConfig(python="none", id="ladder", turn_rewards=turn_rewards)
    session = EnvSession(GymnasiumText(config), Deadlines())
    acts = [ToolCall("act", {"action": 1})] * 3
    await play(session, Task("gymnasium_text", {"id": "", "kwargs": {}, "seed": 1}), acts)
    found = await session.score()
    await session.close()
    assert found == {"return": 3.0}
    by_turn = {0: {"return": 1.0}, 1: {"return": 0.0}, 2: {"return": 2.0}}
    assert found.by_turn == (by_turn if turn_rewards else {})


async def test_each_kind_of_action_is_a_tool_and_what_is_fixed_is_not_asked_for():
    async def speak(message: dict[str, Any]) -> Any:
        return seen(action=message["data"], at=[1, 2])

    async with openenv(speak, MOVES) as session:
        opening = await session.open(START)
        assert [(t.name, t.description) for t in opening.tools] == [
            ("turn_left", ""),
            ("walk", "walk on\nand on"),
        ]
        calls = (ToolCall("walk", {"steps": "2"}), ToolCall("turn_left", {}))
        said = [m.content for m in (await session.step("", calls)).messages]
        assert json.loads(said[0]) == {"action": {"steps": 2, "type": "walk"}, "at": [1, 2]}
        assert json.loads(said[1])["action"] == {"type": "left"}


async def test_a_server_with_tools_of_its_own_offers_them():
    async def speak(message: dict[str, Any]) -> Any:
        if message["type"] == "mcp":
            tool = {"name": "look", "description": "look", "inputSchema": {"type": "object"}}
            return {"type": "mcp", "data": {"jsonrpc": "2.0", "id": 1, "result": {"tools": [tool]}}}
        if message["data"].get("tool_name") != "look":
            return seen(text="start")
        if at := message["data"]["arguments"].get("at"):
            error = "no" if at > 1 else {"message": "not so"}
            return seen(tool_name="look", result=None, error=error)
        return seen(tool_name="look", result={"content": [{"type": "text", "text": "a door"}]})

    async with openenv(speak, TOOLS) as session:
        assert [t.name for t in (await session.open(START)).tools] == ["look"]
        looks = ({}, {"at": 1}, {"at": 2})
        result = await session.step("", tuple(ToolCall("look", one) for one in looks))
        told = ["a door", "error: not so", "error: no"]
        assert [m.content for m in result.messages] == told


BAD_GUESS = refused("VALIDATION_ERROR", errors=[{"loc": ["guess"], "msg": "too large"}])


@pytest.mark.parametrize(
    ("answer", "fault", "sentence"),
    [
        (refused("EXECUTION_ERROR", "a bug"), EnvFault, "step: a bug"),
        (refused("SESSION_ERROR", "lost"), HostFault, "step: SESSION_ERROR: lost"),
        (None, HostFault, "does not answer: ConnectionClosed"),
        ("this is no JSON", HostFault, "does not speak OpenEnv: step: JSONDecodeError"),
        ({"kind": "observation"}, HostFault, "does not speak OpenEnv: step: KeyError"),
        ({"type": "observation", "data": 5}, HostFault, "does not speak OpenEnv: step: TypeError"),
    ],
)
async def test_each_failure_of_a_server_in_the_middle_is_the_fault_of_who_failed(
    answer, fault, sentence
):
    async def speak(message: dict[str, Any]) -> Any:
        return seen(text="go") if message["type"] == "reset" else answer

    async with openenv(speak) as session:
        await session.open(START)
        with pytest.raises(fault, match=sentence):
            await session.step("", (ToolCall("guess", {"guess": 1}),))


async def test_an_action_that_the_server_refuses_is_told_to_the_policy():
    async def speak(message: dict[str, Any]) -> Any:
        return seen(text="go") if message["type"] == "reset" else BAD_GUESS

    async with openenv(speak) as session:
        await session.open(START)
        result = await session.step("", (ToolCall("guess", {"guess": 1}),))
        assert result.messages[0].content == "error: argument guess: too large"


async def test_a_server_that_is_full_is_infrastructure_and_a_slow_one_misses_the_deadline():
    async def full(message: dict[str, Any]) -> Any:
        return refused("CAPACITY_REACHED", "8 of 8 sessions")

    released = asyncio.Event()

    async def slow(message: dict[str, Any]) -> Any:
        if message["type"] == "step":
            await released.wait()
        return seen(text="go")

    async with openenv(full) as session:
        with pytest.raises(HostFault, match="CAPACITY_REACHED: 8 of 8 sessions") as lost:
            await session.open(START)
        assert re.search(r"none became free within [34] s", str(lost.value)), "just before the end"
    async with openenv(slow) as session:
        await session.open(START)
        with pytest.raises(EnvFault, match=r"tool 'guess': no answer within 0.5 s") as caught:
            await session.step("", (ToolCall("guess", {"guess": 1}),))
        assert caught.value.kind == "timeout"
        released.set()


async def test_episodes_wait_for_a_session_of_a_server_that_has_few():
    """Two sessions at a time, and none for the first asker, since another process has them."""
    now, most, asked = 0, 0, 0

    async def speak(message: dict[str, Any]) -> Any:
        nonlocal now, most, asked
        if message["type"] != "reset":
            return seen(done=True, text="over")
        asked += 1
        if asked == 1 or now == 2:
            return refused("CAPACITY_REACHED", f"{now} of 2 sessions")
        now += 1
        most = max(most, now)
        return seen(text="go")

    async with openenv(speak) as session:

        async def episode() -> None:
            nonlocal now
            one = EnvSession(type(session.env)(session.env.config), Deadlines())
            await one.open(START)
            await asyncio.sleep(0.02)
            await one.step("", (ToolCall("guess", {"guess": 1}),))
            now -= 1
            await one.close()

        await asyncio.gather(*(episode() for _ in range(8)))
    assert (now, most) == (0, 2)


async def test_a_host_without_a_session_waits_until_another_host_lets_one_go(monkeypatch):
    """All sessions are of another process, for longer than a reset outside of a run would wait."""
    monkeypatch.setattr("envs.interop.openenv.LONGEST_SECONDS", 0.0)
    free = asyncio.Event()

    async def speak(message: dict[str, Any]) -> Any:
        if message["type"] == "reset" and not free.is_set():
            return refused("CAPACITY_REACHED", "2 of 2 sessions")
        return seen(text="go")

    async with openenv(speak) as session:
        opening = asyncio.create_task(session.open(START))
        await asyncio.sleep(0.7)
        assert not opening.done()
        free.set()
        assert (await opening).messages[-1].content == "guess\n\ngo"


async def test_why_a_server_hung_up_is_read_although_the_connection_is_gone():
    async def full(message: dict[str, Any]) -> Any:
        return seen(text="go")

    async with openenv(full, hello=refused("CAPACITY_REACHED", "8 of 8 sessions")) as session:
        env = session.env
        ask = env._ask  # type: ignore[attr-defined]

        async def ask_late(type: str, data: dict[str, Any]) -> Any:
            await env.socket.wait_closed()  # type: ignore[attr-defined]
            return await ask(type, data)

        env._ask = ask_late  # type: ignore[attr-defined]
        with pytest.raises(HostFault, match="CAPACITY_REACHED: 8 of 8 sessions"):
            await session.open(START)


def test_a_server_that_is_not_there_is_named_before_the_run():
    env = OpenEnv(OpenEnvConfig(url="http://127.0.0.1:9"))
    with pytest.raises(HostFault, match=r"OpenEnv server http://127.0.0.1:9 does not answer"):
        env.probe()


# ---------------------------------------------------------------- reasoning-gym's levels


@dataclasses.dataclass
class Board:
    min_nodes: int = 6
    max_nodes: int = 9
    steps: int = 4
    size: int = 500

    def validate(self) -> None:
        assert 6 <= self.min_nodes <= self.max_nodes


@dataclasses.dataclass
class Power:
    """Checks nothing."""

    steps: int = 1


@dataclasses.dataclass
class Stones:
    """Checks itself when it is made, as ValueError."""

    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps > 12:
            raise ValueError("steps must be at most 12")


class Curriculum:
    """As reasoning-gym's, which begins every range at its first level."""

    def __init__(self, config: type, nodes: tuple[int, ...] = ()) -> None:
        self.name, self.config = "Stand-in", config
        ranges = SimpleNamespace(
            name="nodes",
            levels=nodes,
            lower_field_name="min_nodes",
            upper_field_name="max_nodes",
        )
        steps = SimpleNamespace(name="steps", levels=(2, 12, 20), field_name="steps")
        self.attributes = {"steps": steps, **({"nodes": ranges} if nodes else {})}
        self.at: dict[str, int] = {}

    def set_attr_level(self, name: str, level: int) -> None:
        self.at[name] = level

    def generate_configuration(self) -> Any:
        values = {"steps": self.attributes["steps"].levels[self.at["steps"]]}
        if "nodes" in self.attributes:
            levels = self.attributes["nodes"].levels
            values |= {"min_nodes": levels[0], "max_nodes": levels[self.at["nodes"]]}
        return self.config(**values)


@pytest.mark.parametrize(
    ("curriculum", "levels"),
    [
        (Curriculum(Power), [{"steps": 2}, {"steps": 12}, {"steps": 20}]),
        (Curriculum(Stones), [{"steps": 2}, {"steps": 12}, {"steps": 12}]),
        (
            Curriculum(Board, (4, 6, 8)),
            [
                {"min_nodes": 6, "max_nodes": 9, "steps": 2},
                {"min_nodes": 6, "max_nodes": 6, "steps": 12},
                {"min_nodes": 6, "max_nodes": 8, "steps": 20},
            ],
        ),
    ],
    ids=["checks nothing", "checks itself", "begins below what it allows"],
)
def test_every_level_has_settings_that_its_data_set_accepts(curriculum, levels):
    assert [reasoning_gym_level(curriculum, level) for level in range(3)] == levels


# ---------------------------------------------------------------- MCP servers

MCP = """
import json, os, sys, time
def say(id, **body): print(json.dumps({"jsonrpc": "2.0", "id": id, **body}), flush=True)
def text(value, bad=False): return {"content": [{"type": "text", "text": value}], "isError": bad}
mode = sys.argv[1]
names = ["echo", "fail", "bad", "bug", "die", "garbage", "hang", "pid", "env", "structured"]
if mode == "mute": time.sleep(60)
calls = 0
for line in sys.stdin:
    message = json.loads(line)
    id, method, params = message.get("id"), message.get("method"), message.get("params", {})
    if method == "initialize":
        say(99, method="roots/list")
        say(id, result={"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                        "serverInfo": {"name": "stand-in", "version": "3"}})
    elif method == "ping":
        say(id, result={})
    elif method == "tools/list":
        half = names[5:] if params.get("cursor") else names[:5]
        tools = [{"name": n, "description": n + "\\nmore", "inputSchema": {"type": "object"},
                  "annotations": {"readOnlyHint": n == "echo"}} for n in half]
        say(id, result={"tools": tools, **({} if params.get("cursor") else {"nextCursor": "5"})})
    elif method == "tools/call":
        calls += 1
        name, given = params["name"], params["arguments"]
        if name == "echo": say(id, result=text(json.dumps(given)))
        if name == "fail": say(id, result=text("not like this", True))
        if name == "bad": say(id, error={"code": -32602, "message": "no such argument"})
        if name == "bug": say(id, error={"code": -32603, "message": "a bug"})
        if name == "die": os._exit(3)
        if name == "garbage": print("Loading model...", flush=True)
        if name == "hang" and mode == "stuck": time.sleep(60)
        if name == "pid": say(id, result=text(str(os.getpid())))
        if name == "env": say(id, result=text(" ".join(sorted(os.environ))))
        if name == "structured": say(id, result={"content": [], "structuredContent": {"n": 1}})
"""


class Desk(McpEnv):
    name = "desk"

    async def reset(self, task: Task) -> list[Message]:
        return [Message("user", "go")]

    async def score(self) -> dict[str, float]:
        return {"solved": 1.0}


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., EnvSession]:
    """Makes a session whose server is the stand-in."""
    script = tmp_path / "server.py"
    script.write_text(MCP, encoding="utf-8")

    def make(mode: str = "", *, tool_seconds: float = 20, **server: Any) -> EnvSession:
        made = {"name": "s", "command": [sys.executable, str(script), mode], **server}
        config = McpConfig.model_validate({"servers": [made]})
        return EnvSession(Desk(config), Deadlines(tool_seconds=tool_seconds))

    return make


async def say(session: EnvSession, name: str, **arguments: Any) -> str:
    return (await session.step("", (ToolCall(name, arguments),))).messages[0].content


DESK = Task("desk", {})


async def test_the_tools_of_a_server_are_listed_to_the_last_page_and_called(desk):
    session = desk()
    opening = await session.open(DESK)
    assert len(opening.tools) == 10
    assert (opening.tools[0].name, opening.tools[0].description) == ("echo", "echo\nmore")
    assert opening.tools[0].parameters == {"type": "object", "properties": {}}
    assert [session.tools[n].options.read_only for n in ("echo", "fail")] == [True, False]
    assert await say(session, "echo", a=[1]) == '{"a": [1]}'
    assert await say(session, "structured") == '{"n": 1}'
    assert await say(session, "fail") == "error: not like this"
    assert await say(session, "bad") == "error: no such argument"
    assert session.env.notes == {"mcp s": "stand-in 3"}
    with pytest.raises(EnvFault, match=r"McpError: a bug \(-32603\)"):
        await say(session, "bug")
    await session.close()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("die", r"died \(exit status 3\)"), ("garbage", "wrote what is no JSON-RPC")],
)
async def test_a_server_that_dies_or_writes_garbage_is_infrastructure_and_the_next_gets_a_new_one(
    desk, name, sentence
):
    session = desk()
    await session.open(DESK)
    first = await say(session, "pid")
    with pytest.raises(HostFault, match=sentence):
        await say(session, name)
    with pytest.raises(HostFault, match=sentence):
        await say(session, "pid")
    following = desk()
    await following.open(DESK)
    assert await say(following, "pid") != first


async def test_a_call_without_an_answer_is_a_missed_deadline_and_the_server_goes_on(desk):
    session = desk(tool_seconds=0.3)
    await session.open(DESK)
    with pytest.raises(EnvFault, match=r"tool 'hang': no answer within 0.3 s"):
        await say(session, "hang")
    session.deadlines = Deadlines()
    assert await say(session, "echo") == "{}"


async def test_a_server_that_is_stuck_is_ended_so_that_nobody_waits_for_it(desk, monkeypatch):
    monkeypatch.setattr("envs.interop.mcp_connection.PING_SECONDS", 0.2)
    session, other = desk("stuck", tool_seconds=0.3), desk("stuck")
    await session.open(DESK)
    await other.open(DESK)
    with pytest.raises(EnvFault, match="no answer within"):
        await say(session, "hang")
    with pytest.raises(HostFault, match=r"did not answer a ping within 0.2 s"):
        await say(other, "echo")


async def test_a_server_that_never_introduces_itself_is_infrastructure(desk, monkeypatch):
    monkeypatch.setattr("envs.interop.mcp_connection.START_SECONDS", 0.3)
    with pytest.raises(HostFault, match=r"did not start within 0.3 s"):
        await desk("mute").open(DESK)


STATEFUL = """
import json, os, pathlib, sys
def say(id, **body): print(json.dumps({"jsonrpc": "2.0", "id": id, **body}), flush=True)
store = pathlib.Path(os.environ["STORE"])
for line in sys.stdin:
    message = json.loads(line)
    id, method, params = message.get("id"), message.get("method"), message.get("params", {})
    if method == "initialize":
        say(id, result={"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                        "serverInfo": {"name": "store", "version": "1"}})
    elif method == "tools/list":
        say(id, result={"tools": [{"name": "add", "inputSchema": {"type": "object"}}]})
    elif method == "tools/call":
        with store.open("a") as file: file.write(params["arguments"]["word"] + "\\n")
        pathlib.Path("here").touch()
        told = " ".join([*store.read_text().split(), sys.argv[1], os.getcwd()])
        say(id, result={"content": [{"type": "text", "text": told}]})
"""


async def test_a_server_with_state_has_a_folder_and_variables_of_each_episode(tmp_path):
    script = tmp_path / "store.py"
    script.write_text(STATEFUL, encoding="utf-8")
    server = {
        "name": "s",
        "command": [sys.executable, str(script), "{episode}/data"],
        "environment": {"STORE": "{episode}/words"},
        "folder": "{episode}",
    }
    config = McpConfig.model_validate({"servers": [server]})
    first, second = (EnvSession(Desk(config), Deadlines()) for _ in range(2))
    folders = []
    for session in (first, second):
        await session.open(DESK)
        folders.append(session.env.episode.path)  # type: ignore[attr-defined]
    for session, folder, words in ((first, folders[0], ["a", "b"]), (second, folders[1], ["c"])):
        said = [await say(session, "add", word=word) for word in words]
        assert said[-1] == " ".join([*words, f"{folder}/data", str(folder)])
        assert (folder / "here").exists()
    for session in (first, second):
        await session.close()
    assert folders[0] != folders[1]
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        ({"command": ["s", "{episode}"], "shared": True}, "is of one episode, so no other can"),
        ({"url": "http://127.0.0.1:9", "folder": "/"}, "folder is of a command, and not of a url"),
    ],
)
def test_settings_of_a_server_that_contradict_each_other_are_refused(server, sentence):
    with pytest.raises(ValueError, match=sentence):
        McpConfig.model_validate({"servers": [{"name": "s", **server}]})


async def test_episodes_share_a_server_unless_it_keeps_state(desk):
    async def pid(**server: Any) -> str:
        session = desk(**server)
        await session.open(DESK)
        found = await say(session, "pid")
        await session.close()
        return found

    assert await pid() == await pid()
    assert await pid(shared=False) != (own := await pid(shared=False))
    assert not Path(f"/proc/{own}").exists()


async def test_servers_that_do_not_end_by_themselves_are_killed_even_where_close_is_cut_off(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("envs.interop.mcp_connection.END_SECONDS", 20)
    script = tmp_path / "server.py"
    script.write_text(MCP + "\ntime.sleep(60)", encoding="utf-8")
    command = [sys.executable, str(script), ""]
    servers = [
        {"name": n, "command": command, "shared": False, "prefix": n} for n in ("one", "two")
    ]
    env = Desk(McpConfig.model_validate({"servers": servers}))
    session = EnvSession(env, Deadlines(close_seconds=0.2))
    await session.open(DESK)
    with pytest.raises(EnvFault, match=r"close: no answer within 0.2 s"):
        await session.close()
    for connection in env.connections.values():
        assert isinstance(connection, StdioConnection)
        async with asyncio.timeout(10):
            assert await connection.process.wait() == -signal.SIGKILL


async def test_a_server_sees_no_variable_that_it_was_not_given(desk, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "1")
    session = desk(environment={"GIVEN": "1"})
    await session.open(DESK)
    names = (await say(session, "env")).split()
    assert "GIVEN" in names and "PATH" in names and "SECRET_KEY" not in names


async def test_a_subclass_may_call_a_server_itself_and_offer_a_part_of_it(desk):
    session = desk(tools=["echo"], prefix="s_")
    assert [t.name for t in (await session.open(DESK)).tools] == ["s_echo"]
    assert await session.env.call_server("s", "echo", a=1) == '{"a": 1}'
    assert await say(session, "pid") == "error: no tool 'pid'"


@pytest.mark.parametrize(
    ("server", "fault", "sentence"),
    [
        ({"tools": ["ecko"]}, ValueError, "server 's' has no tool 'ecko': did you mean 'echo'?"),
        ({"command": ["/nowhere/server"]}, HostFault, "cannot be started: No such file"),
        ({"command": [], "url": "http://127.0.0.1:9"}, HostFault, "does not answer: ConnectError"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_before_the_run(desk, server, fault, sentence):
    with pytest.raises(fault, match=sentence):
        desk(**server).env.probe()


@contextlib.contextmanager
def http_server(reply: Callable[[dict[str, Any]], tuple[int, str, str]]) -> Iterator[str]:
    """The URL of a server that answers a message with (status, content type, text)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            status, kind, text = reply(json.loads(self.rfile.read(size)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Mcp-Session-Id", "abc")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_DELETE(self) -> None:
            self.send_response(405)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/mcp"


TOOL = {"name": "add", "inputSchema": {"type": "object", "properties": {"a": {"type": "integer"}}}}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((404, "text/plain", ""), "has lost the session"),
        ((500, "text/plain", ""), "HTTP 500"),
        ((200, "application/json", "no JSON"), "wrote what is no JSON-RPC"),
        (
            (200, "text/event-stream", ": nothing\n\n"),
            "ended its reply to tools/call without a result",
        ),
    ],
)
async def test_a_server_by_http_answers_plainly_or_by_events_or_is_infrastructure(answer, sentence):
    def reply(message: dict[str, Any]) -> tuple[int, str, str]:
        id, method = message.get("id"), message["method"]
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "result": {"tools": [TOOL]}}
        if id is None:
            return 202, "text/plain", ""
        if method == "tools/list":
            note = json.dumps({"jsonrpc": "2.0", "method": "notifications/progress"})
            return 200, "text/event-stream", f"data: {note}\n\nid: 1\ndata: {json.dumps(body)}\n\n"
        if method == "tools/call":
            return answer
        about = {"name": "stand-in", "version": "3"}
        result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": about}
        return 200, "application/json", json.dumps({**body, "result": result})

    with http_server(reply) as url:
        config = McpConfig.model_validate({"servers": [{"name": "s", "url": url, "shared": False}]})
        session = EnvSession(Desk(config), Deadlines())
        assert [t.name for t in (await session.open(DESK)).tools] == ["add"]
        with pytest.raises(HostFault, match=sentence):
            await say(session, "add", a=1)
        await session.close()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("id", "config", "sentence"),
    [
        ("envs.interop.openenv:OpenEnv", {"url": "localhost:1"}, "has to begin with http://"),
        ("envs.interop.openenv:OpenEnv", {}, "config.url: Field required"),
        (
            "envs.interop.openenv:OpenEnv",
            {"url": "http://x", "instruction": ""},
            "config.instruction: unknown key; known here are url, reset, instructions",
        ),
        (
            "envs.interop.reasoning_gym:ReasoningGym",
            {"python": "python", "datasets": []},
            "config.datasets: Tuple should have at least 1 item",
        ),
        (
            "envs.interop.mcp_tools:McpEnv",
            {"servers": [{"name": "a", "command": ["x"], "url": "http://x"}]},
            "server 'a': give exactly one of command and url",
        ),
        (
            "envs.interop.mcp_tools:McpEnv",
            {"servers": [{"name": "a", "command": ["x"]}, {"name": "a", "command": ["x"]}]},
            "two servers have the same name: a, a",
        ),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(id, config, sentence):
    with pytest.raises(ConfigError) as caught:
        EnvTable(id=id, config=config).make()
    assert sentence in str(caught.value)


def test_an_answer_that_the_policy_never_gave_is_not_scored_by_the_package():
    env = ReasoningGym(ReasoningGymConfig(python="/nowhere/python", datasets=("chain_sum",)))
    assert asyncio.run(env.score()) == {"score": 0.0}
