"""The gateway as an outsider meets it: clients that go away, flood, lie and write nonsense, over real HTTP.

Each gets its API's own error, nothing that the engine wrote is lost; turns, requests and limits add up.
"""

import asyncio
import gzip
import itertools
import json
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from fakes import END
from test_gateway import ASKED, CALL, TOOL, Served, audit

from rollout.engine import EngineFault
from rollout.gateway import server
from rollout.gateway.talk import MOST_AT_ONCE, Talk

pytestmark = pytest.mark.process

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
TYPED: list[Any] = [None, True, -1, 1.5, "\ud800", [None], {"a": [{}]}]
CHAT_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "policy",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "6 times 7 ?"}], "name": "me"},
            {
                "role": "assistant",
                "content": "so",
                "tool_calls": [CHAT_CALL],
                "reasoning_content": "hm",
            },
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
        "tools": [TOOL],
        "tool_choice": "auto",
        "max_tokens": 9,
        "max_completion_tokens": 9,
        "stop": ["x"],
        "temperature": 0.5,
        "top_p": 0.5,
        "seed": 1,
        "n": 1,
        "logprobs": False,
        "stream": False,
        "stream_options": None,
        "user": "me",
        "metadata": {},
        "store": False,
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "reasoning_effort": "low",
    },
    RESPONSES: {
        "model": "policy",
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "6 times 7 ?"}],
            },
            {"type": "function_call", "call_id": "c", "id": "i", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "42"},
        ],
        "instructions": "be brief",
        "tools": [{"type": "function", "strict": False, **TOOL["function"]}],
        "tool_choice": "auto",
        "max_output_tokens": 9,
        "temperature": 0.5,
        "stream": False,
        "reasoning": {},
        "include": [],
        "metadata": {},
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
    },
    MESSAGES: {
        "model": "policy",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": "6 times 7 ?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "so"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "42"}],
            },
        ],
        "tools": [
            {"name": "f", "description": "", "input_schema": {"type": "object", "properties": {}}}
        ],
        "tool_choice": {"type": "auto"},
        "stop_sequences": ["x"],
        "temperature": 0.5,
        "top_k": 3,
        "stream": False,
        "thinking": {"type": "disabled"},
        "metadata": {},
    },
}


class Raw:
    """A client that sends what it is told."""

    def __init__(self, served: Served, session: aiohttp.ClientSession) -> None:
        self.url, self.key, self.session = served.access.url, served.access.key, session

    async def post(
        self, path: str, body: Any, method: str = "POST", **headers: str
    ) -> tuple[int, Any]:
        """headers: as Python names, such as x_api_key; "" for none of the usual ones."""
        given = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name: value for name, value in given.items() if value}
        async with self.session.request(method, self.url + path, data=data, headers=sent) as got:
            stream = got.content_type == "text/event-stream"
            return got.status, await (got.text() if stream else got.json())


def is_error(path: str, status: int, body: Any) -> bool:
    """True for an error in the shape that the API of this path has."""
    error = body["error"]
    if not path.startswith(MESSAGES):
        return body.keys() == {"error"} and error.keys() == {"message", "type", "param", "code"}
    kinds = ("_error", "_too_large")
    known = error.keys() == {"type", "message"} and error["type"].endswith(kinds)
    return known and body.keys() == {"type", "error"} and body["type"] == "error"


def places(value: Any, at: tuple[Any, ...] = ()) -> Any:
    """Every place in a JSON value but the outermost."""
    if isinstance(value, dict | list):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield (*at, name)
            yield from places(value[name], (*at, name))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    inner = copy
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = new
    return copy


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_a_wrong_type_in_any_field_is_an_error_of_the_api_or_no_matter(renderer, path):
    good = GOOD[path]
    script = ["42" + END] * 5000
    served = Served(renderer, script, max_turns=5000, max_tokens=4096)
    async with served, aiohttp.ClientSession() as session:
        raw = Raw(served, session)
        assert (await raw.post(path, good))[0] == 200
        answered = 1
        for at, new in itertools.product(places(good), TYPED):
            # The same body again would be a retry.
            key = f"{at} {TYPED.index(new)}"
            status, body = await raw.post(path, changed(good, at, new), Idempotency_Key=key)
            assert status in (200, 400, 404), (at, new, body)
            assert status == 200 or is_error(path, status, body), (at, new, body)
            answered += status == 200
        assert len(served.talk.turns) == len(served.engine.requests) == answered
        assert served.talk.fault is None
        names = [request.id for request in served.engine.requests]
        assert len(set(names)) == len(names)
        audit(served)


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "temperature", "hot"),
        (CHAT, "stream", "yes"),
        (CHAT, "seed", 1.5),
        (CHAT, "user", 5),
        (CHAT, "store", 1),
        (RESPONSES, "metadata", []),
        (RESPONSES, "reasoning", "high"),
        (MESSAGES, "top_k", True),
        (MESSAGES, "thinking", "on"),
        (MESSAGES, "max_tokens", "9"),
    ],
)
async def test_a_parameter_of_another_type_is_named(renderer, path, field, value):
    async with Served(renderer, []) as served, aiohttp.ClientSession() as session:
        status, body = await Raw(served, session).post(path, {**GOOD[path], field: value})
        assert status == 400 and field in body["error"]["message"] and is_error(path, status, body)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_secrets_models_addresses_and_bodies_that_are_wrong(renderer, path):
    good, deep = GOOD[path], b'{"model": "policy", "x": ' + b"[" * 50_000
    nested = {**good, "tools": [{**good["tools"][0], "parameters": {}, "input_schema": {}}]}
    inside: dict[str, Any] = {}
    for _ in range(700):
        inside = {"a": inside}
    schema = {"type": "object", "properties": inside}
    function = {"name": "f", "parameters": schema}
    nested["tools"] = [
        {**function, "type": "function", "function": function, "input_schema": schema}
    ]
    if path == MESSAGES:
        nested["tools"][0]["type"] = "custom"
    async with Served(renderer, ["42" + END] * 3) as served, aiohttp.ClientSession() as session:
        raw = Raw(served, session)
        wanted = [
            (401, await raw.post(path, good, Authorization="")),
            (401, await raw.post(path, good, Authorization="Bearer sk-other")),
            (401, await raw.post(path, good, Authorization="", x_api_key="sk-other")),
            (404, await raw.post(path, {**good, "model": "gpt-9" * 10_000})),
            (400, await raw.post(path, {**good, "model": ["policy"]})),
            (404, await raw.post(f"{path}/more", good)),
            (404, await raw.post(path, good, method="PUT")),
            (413, await raw.post(path, b'{"x": "' + b"y" * 10_000_000 + b'"}')),
            (400, await raw.post(path, b'{"model": "policy", "x": "\xff"}')),
            (400, await raw.post(path, b"\xff\xfe\x00")),
            (400, await raw.post(path, b"")),
            (400, await raw.post(path, b'{"model": "policy"')),
            (400, await raw.post(path, deep)),
            (400, await raw.post(path, b'{"model": "policy", "max_tokens": ' + b"9" * 5000 + b"}")),
            (400, await raw.post(path, b"no gzip", Content_Encoding="gzip")),
            (400, await raw.post(path, nested)),
        ]
        for number, (status, (got, body)) in enumerate(wanted):
            assert got == status and is_error(path, got, body), (number, got, body)
            assert len(json.dumps(body)) < 3000
        assert served.engine.requests == [] and served.talk.turns == []
        packed = gzip.compress(json.dumps(good).encode())
        assert (await raw.post(path, packed, Content_Encoding="gzip"))[0] == 200
        assert served.talk.turns[0].begins == "" and served.talk.branches == []


async def test_a_secret_that_is_no_text_is_no_secret(renderer):
    async with Served(renderer, []) as served:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(served.access.url.rpartition(":")[2])
        )
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
        writer.write(head + b"Authorization: Bearer \xe9\xff\r\n\r\n{}")
        status, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert status.startswith(b"HTTP/1.1 401") and is_error(CHAT, 401, json.loads(body))


def held(served: Served) -> asyncio.Event:
    """Lets the engine answer once it is set."""
    goes, generate = asyncio.Event(), served.engine.generate

    async def later(request: Any) -> Any:
        await goes.wait()
        return await generate(request)

    served.talk.generate = later
    return goes


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_a_client_that_goes_away_in_a_stream_is_sampled_once(renderer, path, monkeypatch):
    monkeypatch.setattr(server, "ALIVE_SECONDS", 0.02)
    async with Served(renderer, ["42" + END]) as served:
        goes = held(served)
        for _ in range(3):
            async with aiohttp.ClientSession() as session:
                headers = {"x-api-key": served.access.key}
                body = {**GOOD[path], "stream": True}
                got = await session.post(served.access.url + path, json=body, headers=headers)
                assert await got.content.readline() == b": alive\n"
                got.close()
        goes.set()
        async with aiohttp.ClientSession() as session:
            status, body = await Raw(served, session).post(path, GOOD[path])
        assert status == 200 and "42" in json.dumps(body)
        assert len(served.engine.requests) == 1 and served.talk.repeats == 3
        audit(served)


async def test_a_failure_after_a_stream_has_begun_is_the_apis_exception(renderer, monkeypatch):
    monkeypatch.setattr(server, "ALIVE_SECONDS", 0.02)
    for ask in ("openai", "anthropic"):
        async with Served(renderer, [EngineFault("engine-0 died")]) as served:
            goes = held(served)
            asyncio.get_running_loop().call_later(0.1, goes.set)
            if ask == "openai":
                with pytest.raises(openai.APIError, match="engine-0 died"):
                    stream = await served.openai.chat.completions.create(
                        model="policy", messages=ASKED, stream=True
                    )
                    [_ async for _ in stream]
            else:
                with pytest.raises(anthropic.APIError, match="engine-0 died"):
                    async with served.anthropic.messages.stream(
                        model="policy", max_tokens=9, messages=ASKED
                    ) as stream:
                        await stream.get_final_message()


async def test_a_flood_gets_the_places_that_there_are_and_the_turns_that_there_are(renderer):
    async with Served(renderer, ["42" + END] * 300, max_turns=100) as served:
        goes = held(served)
        url = f"{served.access.url}{CHAT}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            headers = {"Authorization": f"Bearer {served.access.key}"}

            async def one(number: int) -> tuple[int, Any]:
                body = {"model": "policy", "messages": [{"role": "user", "content": f"{number} ?"}]}
                async with session.post(url, json=body, headers=headers) as got:
                    return got.status, await got.json()

            flood = [asyncio.create_task(one(n)) for n in range(300)]
            while sum(task.done() for task in flood) < 300 - MOST_AT_ONCE:
                await asyncio.sleep(0.01)
            goes.set()
            found = await asyncio.gather(*flood)
            assert sum(status == 200 for status, _ in found) == MOST_AT_ONCE
            refused = [body for status, body in found if status == 429]
            assert len(refused) == 300 - MOST_AT_ONCE and is_error(CHAT, 429, refused[0])
            again = await asyncio.gather(*(one(1000 + n) for n in range(60)))
            codes = [body["error"]["code"] for status, body in again if status == 400]
            assert codes == ["turn_limit_exceeded"] * (MOST_AT_ONCE + 60 - 100)
            assert len(served.talk.turns) == len(served.engine.requests) == 100
            audit(served)


async def test_a_secret_opens_its_own_episode_only_and_none_after_the_end(renderer):
    async with Served(renderer, ["1" + END] * 2) as served, aiohttp.ClientSession() as session:
        talk = served.talk
        other = Talk("g0.1", "policy", renderer, talk.config, talk.generate, None)
        access = await served.gateway.open(other)
        theirs = Raw(served, session)
        theirs.key = access.key
        assert (await theirs.post(CHAT, GOOD[CHAT]))[0] == 200
        assert (len(other.turns), len(talk.turns)) == (1, 0)

        begun = asyncio.Event()

        async def slow() -> Any:
            whole = json.dumps(GOOD[CHAT]).encode()
            yield whole[:10]
            begun.set()
            while not other.closed:
                await asyncio.sleep(0.01)
            yield whole[10:]

        headers = {"Authorization": f"Bearer {access.key}"}
        late = asyncio.create_task(
            session.post(served.access.url + CHAT, data=slow(), headers=headers)
        )
        await begun.wait()
        await served.gateway.shut(other)
        async with await late as got:
            assert got.status == 401 and is_error(CHAT, 401, await got.json())
        for path in (CHAT, RESPONSES, MESSAGES):
            status, body = await theirs.post(path, GOOD[path])
            assert status == 401 and is_error(path, status, body)
        assert len(served.engine.requests) == len(other.turns) == 1
        assert (await Raw(served, session).post(CHAT, GOOD[CHAT]))[0] == 200


async def test_an_episode_that_ends_answers_who_still_waits(renderer):
    async with Served(renderer, ["1" + END]) as served, aiohttp.ClientSession() as session:
        held(served)
        asking = asyncio.create_task(Raw(served, session).post(MESSAGES, GOOD[MESSAGES]))
        while not served.talk.conversation.segments:
            await asyncio.sleep(0.01)
        await served.gateway.shut(served.talk)
        status, body = await asking
        assert status == 500 and is_error(MESSAGES, status, body)
        assert served.talk.turns == [] and served.talk.fault is None


async def test_a_body_that_never_comes_is_given_up(renderer, monkeypatch):
    monkeypatch.setattr(server, "READ_SECONDS", 0.05)

    async def never() -> Any:
        yield b'{"model"'
        await asyncio.sleep(0.5)

    async with Served(renderer, ["1" + END]) as served, aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {served.access.key}"}
        async with session.post(served.access.url + CHAT, data=never(), headers=headers) as got:
            assert got.status == 408 and is_error(CHAT, 408, await got.json())


async def test_what_was_refused_uses_no_name_and_no_turn_and_begins_no_segment(renderer):
    async with Served(renderer, ["1" + END] * 3, max_tokens=60, max_turns=3) as served:
        goes = held(served)
        long = [{"role": "user", "content": "word " * 60}]
        with pytest.raises(openai.BadRequestError):
            await served.chat(long)
        first = asyncio.create_task(served.chat(ASKED))
        with pytest.raises(openai.BadRequestError):
            await served.chat([*long, *ASKED])
        second = asyncio.create_task(served.chat([{"role": "user", "content": "1 ?"}]))
        goes.set()
        await asyncio.gather(first, second)
        await served.chat([{"role": "user", "content": "2 ?"}])
        assert len({request.id for request in served.engine.requests}) == 3
        turns, branches = served.talk.segments()
        assert [turn.begins for turn in turns] == ["", "branch", "branch"]
        assert [(b.segment, b.parent) for b in branches] == [(1, 0), (2, branches[1].parent)]
        audit(served)


async def test_a_completion_that_no_parser_reads_is_a_turn_all_the_same(renderer, monkeypatch):
    def fails(*_: Any) -> Any:
        raise KeyError("properties")

    async with Served(renderer, [CALL + END]) as served:
        monkeypatch.setattr(renderer, "read", fails)
        choice = await served.chat(ASKED, tools=[TOOL])
        assert choice.finish_reason == "stop" and "multiply" in choice.message.content
        audit(served)
