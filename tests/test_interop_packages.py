"""The real foreign packages and servers, in interpreters of their own; skipped where no index is reached."""

import asyncio
import contextlib
import itertools
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign import foreign_python

from envs.env import EnvConfig, Task
from envs.interop.gymnasium_text import GymnasiumText, GymnasiumTextConfig
from envs.interop.interpreter import child_interpreter
from envs.interop.mcp_tools import McpConfig, McpEnv
from envs.interop.openenv import OpenEnv, OpenEnvConfig
from envs.interop.reasoning_gym import ReasoningGym, ReasoningGymConfig
from envs.message import Message, ToolCall
from envs.session import Deadlines, EnvFault, EnvSession, HostFault, demonstrate

pytestmark = pytest.mark.network

NEEDLESS = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


@pytest.fixture(scope="session")
def packages() -> str:
    """Those that do not get in each other's way; of the MCP SDK the second generation."""
    return foreign_python(["reasoning-gym==0.1.25", "gymnasium==1.4.0", "mcp==2.3.0"])


@pytest.fixture
def reasoning_gym(packages: str) -> str:
    return packages


@pytest.fixture
def gymnasium(packages: str) -> str:
    return packages


@pytest.fixture(scope="session")
def servers() -> str:
    """OpenEnv without its browser interface, and the MCP SDK of the first generation."""
    needed = ["fastmcp==3.2.0", "uvicorn", "fastapi", "websockets"]
    return foreign_python(needed, without_dependencies=["openenv==0.10.0"])


@contextlib.contextmanager
def served(python: str, script: Path, probe: Any) -> Iterator[None]:
    """A server's process, from when `probe` finds it until it is killed."""
    process = subprocess.Popen([python, str(script)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(HostFault):
                probe()
                break
            assert process.poll() is None, f"{script.name} ended"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# ---------------------------------------------------------------- reasoning-gym


def gym_of(python: str, *datasets: str, **more: Any) -> ReasoningGym:
    return ReasoningGym(ReasoningGymConfig(python=python, datasets=datasets, **more))


def test_every_data_set_is_found_by_name_and_its_own_answer_is_right(reasoning_gym):
    child = child_interpreter(reasoning_gym, "reasoning_gym_server.py", 60)
    names = child.ask_now("names")
    assert len(names) >= 106
    parts = {"composite": {"datasets": [{"name": "chain_sum"}, {"name": "leg_counting"}]}}
    without_answer, wrong = set(), []
    for name in names:
        env = gym_of(reasoning_gym, name, settings=parts if name == "composite" else {})
        made_of = env._made_of(name)
        data = {**made_of, "entry": child.ask_now("problem", **made_of, seed=7)}
        assert data["entry"]["question"]
        if data["entry"]["answer"] is None:
            without_answer.add(name)
            with pytest.raises(TypeError, match=f"{name!r} gives no answer"):
                next(env.expert(Task(env.name, data)))
            continue
        _, _, rewards = asyncio.run(demonstrate(env, Task(env.name, data)))
        if rewards != {"score": 1.0}:
            wrong.append((name, rewards))
    assert wrong == []
    assert without_answer == NEEDLESS


@pytest.mark.parametrize("name", ["power_function", "tsumego", "knight_swap"])
def test_the_levels_of_data_sets_that_check_themselves_otherwise_can_be_played(reasoning_gym, name):
    for difficulty in (1, 2, 3):
        env = gym_of(reasoning_gym, name, difficulty=difficulty)
        env.probe()
        made_of = env._made_of(name)
        entry = env.child.ask_now("problem", **made_of, seed=7)
        task = Task(env.name, {**made_of, "entry": entry})
        assert asyncio.run(demonstrate(env, task))[2] == {"score": 1.0}


def test_equal_problems_are_one_task_and_seeds_give_the_same_tasks(reasoning_gym):
    env = gym_of(reasoning_gym, "chain_sum", "leg_counting", difficulty=2)
    first, again = (list(itertools.islice(env.tasks("train", 3), 8)) for _ in range(2))
    assert first == again
    assert {task.data["difficulty"] for task in first} == {2}
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    few = gym_of(reasoning_gym, "chain_sum", settings={"chain_sum": small})
    train = {task.id for task in itertools.islice(few.tasks("train", 0), 200)}
    heldout = {task.id for task in itertools.islice(few.tasks("heldout", 1), 20)}
    assert not train & heldout
    assert len(train) < 200, "the same sums come again, as the same tasks"


async def test_an_answer_is_what_stands_in_the_tags_and_a_wrong_one_scores_less(reasoning_gym):
    env = gym_of(reasoning_gym, "chain_sum", system="think")
    task = next(env.tasks("train", 0))
    right = task.data["entry"]["answer"]
    for text, solved in ((f"so <answer> {right} </answer>.", True), ("<answer>x</answer>", False)):
        session = EnvSession(gym_of(reasoning_gym, "chain_sum", system="think"), Deadlines())
        opening = await session.open(task)
        assert [m.role for m in opening.messages] == ["system", "user"]
        assert (await session.step(text, ())).done
        assert ((await session.score())["score"] == 1.0) is solved
        assert session.env.notes["reasoning-gym"] == "0.1.25"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"datasets": ["chain_sums"]}, "no data set 'chain_sums': did you mean 'chain_sum'?"),
        (
            {"datasets": ["chain_sum"], "settings": {"chain_sum": {"min_terns": 2}}},
            "settings.chain_sum: unknown key 'min_terns'; known here are min_terms",
        ),
        ({"datasets": ["chain_sum"], "settings": {"chain_sum": {"min_terms": -2}}}, "positive"),
        ({"datasets": ["composite"], "difficulty": 1}, "'composite' has no levels"),
    ],
)
def test_settings_of_data_sets_are_checked_before_the_run(reasoning_gym, settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ReasoningGym(ReasoningGymConfig(python=reasoning_gym, **settings)).probe()


# ---------------------------------------------------------------- Gymnasium

LAKE = {
    "id": "FrozenLake-v1",
    "kwargs": {"is_slippery": False},
    "actions": ("left", "down", "right", "up"),
}


def world(python: str, **settings: Any) -> GymnasiumText:
    return GymnasiumText(GymnasiumTextConfig(python=python, **{**LAKE, **settings}))


async def test_a_lake_is_crossed_by_named_actions_in_what_can_be_read(gymnasium):
    env = world(gymnasium, instructions="reach G")
    session = EnvSession(env, Deadlines())
    opening = await session.open(next(env.tasks("train", 0)))
    assert opening.messages[0].content.startswith("reach G\n\n<red>S</red>FFF\nFHFH")
    for action in ("down", "down", "right", "right", "down", "right"):
        result = await session.step("", (ToolCall("act", {"action": action}),))
    assert result.done and "<red>G</red>" in result.messages[0].content
    assert await session.score() == {"return": 1.0}
    assert env.notes == {"gymnasium": "1.4.0"}
    await session.close()


async def test_two_resets_of_a_task_give_the_same_world_and_other_tasks_other_worlds(gymnasium):
    env = world(gymnasium, id="Taxi-v4", kwargs={}, actions=())
    one, two = itertools.islice(env.tasks("train", 0), 2)
    settings = {"id": "Taxi-v4", "kwargs": {}, "actions": ()}
    seen = [
        await EnvSession(world(gymnasium, **settings), Deadlines()).open(task)
        for task in (one, one, two)
    ]
    assert seen[0] == seen[1] != seen[2]
    assert all("<yellow>" in opening.messages[0].content for opening in seen), "where the taxi is"


@pytest.mark.parametrize(
    ("id", "action", "text"),
    [("Blackjack-v1", "0", "["), ("CartPole-v1", 1, "["), ("MountainCarContinuous-v0", [0.5], "[")],
)
async def test_worlds_without_a_picture_are_seen_as_json(gymnasium, id, action, text):
    env = world(gymnasium, id=id, kwargs={}, actions=())
    session = EnvSession(env, Deadlines())
    opening = await session.open(next(env.tasks("train", 0)))
    assert opening.messages[0].content.startswith(text)
    result = await session.step("", (ToolCall("act", {"action": action}),))
    assert result.messages[0].content.startswith(text)
    wrong = await session.step("", (ToolCall("act", {"action": "leap"}),))
    assert wrong.messages[0].content.startswith("error: ")


async def test_a_world_lost_with_its_interpreter_is_infrastructure(gymnasium):
    session = EnvSession(env := world(gymnasium, request_seconds=21), Deadlines())
    await session.open(next(env.tasks("train", 0)))
    env.child.end()
    with pytest.raises(HostFault, match="was started anew and has lost the episode"):
        await session.step("", (ToolCall("act", {"action": "up"}),))
    await session.close()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"id": "FrozenLak-v1"}, "Did you mean: `FrozenLake`?"),
        ({"actions": ("up",)}, "actions: 1 names for 4 numbered actions of FrozenLake-v1"),
        ({"kwargs": {"is_slipery": True}}, "unexpected keyword argument 'is_slipery'"),
    ],
)
def test_a_world_that_cannot_be_made_is_named_before_the_run(gymnasium, settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        world(gymnasium, **settings).probe()


# ---------------------------------------------------------------- OpenEnv

OPENENV_SERVER = """
import random
import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

class GuessAction(Action):
    guess: int

class Seen(Observation):
    text: str = ""

class Guess(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, most=100, **kwargs):
        self.n = random.Random(seed).randint(1, most)
        return Seen(text=f"1..{most}")

    def step(self, action, timeout_s=None, **kwargs):
        if action.guess < 0:
            raise RuntimeError("a bug below zero")
        right = action.guess == self.n
        text = "yes" if right else "higher" if action.guess < self.n else "lower"
        return Seen(text=text, done=right, reward=float(right))

    @property
    def state(self):
        return State()

app = create_fastapi_app(Guess, GuessAction, Seen, max_concurrent_envs=MOST)
uvicorn.run(app, port=THE_PORT, log_level="error")
"""


async def test_an_openenv_server_is_played_to_its_end_by_several_at_once(servers, tmp_path):
    script, port = tmp_path / "server.py", free_port()
    script.write_text(
        OPENENV_SERVER.replace("THE_PORT", str(port)).replace("MOST", "9"), encoding="utf-8"
    )
    config = OpenEnvConfig(url=f"http://127.0.0.1:{port}", reset={"most": 50})
    tasks = list(itertools.islice(OpenEnv(config).tasks("train", 0), 8))

    async def play(task: Task) -> tuple[list[str], dict[str, float]]:
        session, low, high = EnvSession(OpenEnv(config), Deadlines()), 1, 50
        opening = await session.open(task)
        assert opening.messages[0].content == "1..50" and opening.tools[0].name == "guess"
        said: list[str] = []
        while not said or said[-1] != "yes":
            middle = (low + high) // 2
            result = await session.step("", (ToolCall("guess", {"guess": str(middle)}),))
            said.append(result.messages[0].content)
            low, high = (middle + 1, high) if said[-1] == "higher" else (low, middle - 1)
        assert result.done
        rewards = await session.score()
        await session.close()
        return said, rewards

    with served(servers, script, OpenEnv(config).probe):
        played = await asyncio.gather(*map(play, tasks))
        assert [rewards for _, rewards in played] == [{"return": 1.0}] * 8
        assert [await play(task) for task in tasks] == played, "the same task is the same world"
        broken = EnvSession(OpenEnv(config), Deadlines())
        await broken.open(tasks[0])
        with pytest.raises(EnvFault, match="a bug below zero"):
            await broken.step("", (ToolCall("guess", {"guess": -1}),))
        more = [EnvSession(OpenEnv(config), Deadlines()) for _ in range(12)]
        opening = {asyncio.create_task(session.open(tasks[0])): session for session in more}
        while sum(task.done() for task in opening) < 8:  # of 9, as a broken one may still be held
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        opened = [session for task, session in opening.items() if task.done()]
        assert len(opened) <= 9, "the others wait until one is let go"
        for session in opened[:4]:
            await session.close()
        for found in await asyncio.gather(*opening):
            assert found.messages[0].content == "1..50"
    with pytest.raises(HostFault, match="does not answer: ConnectionClosed"):
        await broken.step("", (ToolCall("guess", {"guess": 1}),))
    for session in (broken, *more):
        await session.close()


OPENENV_TOOLS = """
import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Observation, State

class Desk(MCPEnvironment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        server = FastMCP("desk")
        @server.tool
        def double(n: int) -> str:
            "n plus n"
            return str(n + n)
        super().__init__(server)

    def reset(self, seed=None, episode_id=None, **kwargs):
        return Observation()

    def _step_impl(self, action, timeout_s=None, **kwargs):
        return Observation()

    @property
    def state(self):
        return State()

app = create_fastapi_app(Desk, CallToolAction, CallToolObservation, max_concurrent_envs=4)
uvicorn.run(app, port=THE_PORT, log_level="error")
"""


async def test_an_openenv_server_with_tools_offers_them(servers, tmp_path):
    script, port = tmp_path / "server.py", free_port()
    script.write_text(OPENENV_TOOLS.replace("THE_PORT", str(port)), encoding="utf-8")
    config = OpenEnvConfig(url=f"http://127.0.0.1:{port}")
    with served(servers, script, OpenEnv(config).probe):
        session = EnvSession(OpenEnv(config), Deadlines())
        opening = await session.open(Task("openenv", {"seed": 1, "reset": {}}))
        assert [(t.name, t.description) for t in opening.tools] == [("double", "n plus n")]
        result = await session.step("", (ToolCall("double", {"n": "4"}),))
        assert result.messages[0].content == "8"
        await session.close()


# ---------------------------------------------------------------- MCP

MCP_SERVER = """
import sys
try:
    from mcp.server.mcpserver import MCPServer as Server
except ImportError:
    from mcp.server.fastmcp import FastMCP as Server
server, called = Server("demo"), []

@server.tool()
def add(a: int, b: int = 2) -> int:
    "a plus b"
    return a + b

@server.tool()
def boom() -> str:
    raise ValueError("the reason")

@server.tool()
def count() -> int:
    called.append(1)
    return len(called)

if THE_PORT:
    import uvicorn
    uvicorn.run(server.streamable_http_app(), port=THE_PORT, log_level="error")
else:
    server.run("stdio")
"""


class Desk(McpEnv):
    name = "desk"

    async def reset(self, task: Task) -> list[Message]:
        return [Message("user", "add")]

    async def score(self) -> dict[str, float]:
        return {"solved": 1.0}


async def use(config: EnvConfig) -> list[str]:
    session = EnvSession(Desk(config), Deadlines())
    opening = await session.open(Task("desk", {}))
    assert [t.name for t in opening.tools] == ["add", "boom", "count"]
    assert opening.tools[0].description == "a plus b"
    calls = (
        ToolCall("add", {"a": "3"}),
        ToolCall("add", {"a": "x"}),
        ToolCall("boom", {}),
        ToolCall("count", {}),
    )
    result = await session.step("", calls)
    assert session.env.notes["mcp demo"].startswith("demo")
    await session.close()
    return [m.content for m in result.messages]


@pytest.mark.parametrize("generation", ["packages", "servers"])
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_tools_of_a_real_server_by_both_transports_and_generations(
    request, generation, transport, tmp_path
):
    python: str = request.getfixturevalue(generation)
    script, port = tmp_path / "server.py", free_port() if transport == "http" else 0
    script.write_text(MCP_SERVER.replace("THE_PORT", str(port)), encoding="utf-8")
    way: dict[str, Any] = {"command": [python, str(script)]}
    if port:
        way = {"url": f"http://127.0.0.1:{port}/mcp"}

    def config(shared: bool) -> McpConfig:
        return McpConfig.model_validate({"servers": [{"name": "demo", "shared": shared, **way}]})

    running = served(python, script, Desk(config(True)).probe) if port else contextlib.nullcontext()
    with running:
        said = await use(config(shared=True))
        assert said[:2] == ["5", "error: add: argument a: has to be integer, not 'x'"]
        assert said[2].startswith("error: Error executing tool boom")
        # The second generation keeps the reason to itself.
        assert ("the reason" in said[2]) is (generation == "servers")
        assert (said[3], (await use(config(shared=True)))[3]) == ("1", "2")
        alone = (await use(config(shared=False)))[3]
        assert alone == ("3" if port else "1"), "over HTTP the server decides what a session shares"
