"""A resources server of NeMo Gym, as a stand-in that speaks its wire format: sessions, calls, rewards."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from envs.address import http_address
from envs.env import Task
from envs.interop.nemo_gym import NeMoGym, NeMoGymConfig, opening, tools
from envs.message import Message, ToolCall
from envs.session import Deadlines, EnvFault, EnvSession, HostFault
from rl.env_table import anchor_tables

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    "strict": True,
    "type": "function",
    "description": "the weather",
}
ROW = {
    "responses_create_params": {
        "input": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "how is Oslo ?"}]},
        ],
        "tools": [WEATHER],
    },
    "expected": "cold",
}


class Server:
    """Counts calls by session, and verifies: the answer, and that the session made one call."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.seen: list[Any] = []
        self.numbers = itertools.count()
        self.reward: object = None
        self.status = 200

    async def seed(self, request: web.Request) -> web.Response:
        self.seen.append(await request.json())
        response = web.json_response({})
        response.set_cookie("session", f"s{next(self.numbers)}")
        return response

    async def weather(self, request: web.Request) -> web.Response:
        session = request.cookies["session"]
        self.calls[session] = self.calls.get(session, 0) + 1
        body = await request.json()
        if body["city"] == "Nowhere":
            return web.json_response({"detail": "no such city"}, status=422)
        return web.json_response({"city": body["city"], "weather": "cold"})

    async def verify(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        output = body["response"]["output"]
        said = [o["content"][0]["text"] for o in output if o["type"] == "message"]
        right = said[-1:] == [body["expected"]] and self.calls.get(request.cookies["session"]) == 1
        reward = float(right) if self.reward is None else self.reward
        return web.json_response({**body, "reward": reward}, status=self.status)

    async def paths(self, _: web.Request) -> web.Response:
        return web.json_response({"paths": {"/verify": {}, "/seed_session": {}}})


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    served, app = Server(), web.Application()
    app.router.add_post("/seed_session", served.seed)
    app.router.add_post("/get_weather", served.weather)
    app.router.add_post("/verify", served.verify)
    app.router.add_get("/openapi.json", served.paths)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield served, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def made(tmp_path: Path, url: str, row: Any = ROW, **config: Any) -> NeMoGym:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return NeMoGym(NeMoGymConfig(url=url, tasks=str(file), heldout=str(file), **config))


async def played(env: NeMoGym, *turns: Any, row: Any = ROW) -> dict[str, float]:
    """The rewards of an episode; a turn is a city to ask for, or an answer."""
    session = EnvSession(env, Deadlines())
    await session.open(Task("nemo_gym", row))
    try:
        for turn in turns:
            city = turn.removeprefix("city ")
            calls = (ToolCall("get_weather", {"city": city}),) if city != turn else ()
            await session.step("" if calls else turn, calls)
        return dict(await session.score())
    finally:
        await session.close()


async def test_an_episode_is_a_session_of_the_server_and_its_reward_is_the_servers(
    server, tmp_path
):
    served, url = server
    assert await played(made(tmp_path, url), "city Oslo", "cold") == {"reward": 1.0}
    assert await played(made(tmp_path, url), "cold") == {"reward": 0.0}
    both = await asyncio.gather(
        played(made(tmp_path, url), "city Oslo", "city Rome", "cold"),
        played(made(tmp_path, url), "city Oslo", "cold"),
    )
    assert both == [{"reward": 0.0}, {"reward": 1.0}]
    first = served.seen[1]
    assert served.seen[0] == ROW and first["response"]["object"] == "response"
    assert [one["type"] for one in first["response"]["output"]] == [
        "function_call",
        "function_call_output",
        "message",
    ]


async def test_the_policy_reads_what_the_server_refuses(server, tmp_path):
    _, url = server
    session = EnvSession(made(tmp_path, url), Deadlines())
    opened = await session.open(Task("nemo_gym", ROW))
    assert [(m.role, m.content) for m in opened.messages] == [
        ("system", "Be brief."),
        ("user", "how is Oslo ?"),
    ]
    assert [tool.name for tool in opened.tools] == ["get_weather"]
    result = await session.step("", (ToolCall("get_weather", {"city": "Nowhere"}),))
    assert "no such city" in result.messages[0].content
    result = await session.step("", (ToolCall("get_weather", {}),))
    assert "city" in result.messages[0].content
    # No JSON could bring it to the server: the policy's doing.
    result = await session.step("", (ToolCall("get_weather", {"city": "x", "at": float("nan")}),))
    assert result.bad_calls == 1 and "no NaN" in result.messages[0].content
    await session.close()


@pytest.mark.parametrize("reward", ["much", None, True])
async def test_a_verification_without_a_number_is_the_environments_fault(server, tmp_path, reward):
    served, url = server
    served.reward = {"no": "number"} if reward is None else reward
    with pytest.raises(EnvFault, match="gave no reward"):
        await played(made(tmp_path, url), "cold")


async def test_a_verification_that_fails_is_a_fault_and_never_a_reward(server, tmp_path):
    served, url = server
    served.status = 500
    with pytest.raises(EnvFault, match="500"):
        await played(made(tmp_path, url), "cold")


async def test_a_server_that_is_not_there_is_the_hosts_fault(tmp_path):
    env = made(tmp_path, "http://127.0.0.1:9")
    with pytest.raises(HostFault, match="does not answer"):
        await played(env, "cold")
    with pytest.raises(HostFault, match="does not answer"):
        await asyncio.to_thread(env.probe)


async def test_the_probe_looks_at_the_server_and_the_rows(server, tmp_path):
    _, url = server
    await asyncio.to_thread(made(tmp_path, url).probe)


def test_rows_and_folders_of_modules_are_seen_from_the_folder_of_the_config(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    tables = [
        {"id": "nemo_gym", "config": {"url": "http://x", "tasks": "rows.jsonl"}},
        {"id": "verifiers", "config": {"paths": ["mine"], "settings": {"taskset": {"id": "a"}}}},
    ]
    values: dict[str, Any] = {"env": tables}
    anchor_tables(values, tmp_path)
    rows, folders = (table["config"] for table in values["env"])
    assert rows["tasks"] == str(tmp_path / "rows.jsonl")
    assert folders["paths"] == [str(tmp_path / "mine")]


def test_an_input_may_be_a_text_or_a_conversation_with_calls():
    assert opening({"input": "hello", "instructions": "Be kind."}) == [
        Message("system", "Be kind."),
        Message("user", "hello"),
    ]
    items = [
        {"role": "user", "content": "go", "type": "message"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "look", "arguments": '{"at": 1}', "call_id": "c1"},
        {"role": "assistant", "content": "I look twice."},
        {"type": "function_call", "name": "look", "arguments": {}, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "seen"},
    ]
    rules = [{"type": "input_text", "text": "Be kind."}]
    assert opening({"input": items, "instructions": rules}) == [
        Message("system", "Be kind."),
        Message("user", "go"),
        Message("assistant", "I look twice.", (ToolCall("look", {"at": 1}), ToolCall("look", {}))),
        Message("tool", "seen", name="look"),
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "has to be a text or a list"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "would not see"),
        ({"input": [{"type": "computer_call"}]}, "computer_call"),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, "a call needs a name"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "[1]"}]}, "an object of"),
        ({"input": "x", "instructions": 3}, "a text or a list of parts, not 3"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "web_search"),
    ],
)
def test_rows_that_cannot_be_played_are_named(given, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        opening(given)
        tools(given)
    env = made(tmp_path, "http://127.0.0.1:9", {"responses_create_params": given})
    with pytest.raises(ValueError, match=r"row 1: .*" + told):
        next(env.tasks("train", 0))


async def test_a_server_that_takes_the_call_and_says_nothing_is_given_up(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
    async with silent:
        url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        tasks = str(tmp_path / "rows.jsonl")
        env = NeMoGym(NeMoGymConfig(url=url, tasks=tasks, connect_seconds=0.2))
        with pytest.raises(HostFault, match=r"openapi\.json has not answered after 0\.2 s"):
            await asyncio.to_thread(env.probe)
        silent.close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://x", "has to begin with http://"),
        ("http://", "names no host"),
        ("http://127.0.0.1:99999", "Port out of range"),
        ("http://[::1", "is no URL"),
        ("http://a b", "names no host"),
    ],
)
def test_an_address_that_no_client_could_reach_is_refused(url, sentence):
    with pytest.raises(ValueError, match=sentence):
        http_address(url)
    assert http_address("http://[::1]:80/v1/") == "http://[::1]:80/v1"
