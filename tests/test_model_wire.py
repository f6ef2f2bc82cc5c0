"""Servers that are none, or answer half: faults of a class, told at the start where no call can succeed."""

import asyncio
import re
import time
from email.utils import formatdate

import pytest
from test_model_pool import pool_of, question

from envs.chat_model import ChatAnswer, ChatRequest, ModelFault
from rl.model_table import ModelTable
from rl.models.call import NoApi, Refused, ServiceFault
from rl.models.chat_wire import ChatWire
from rl.models.server import ServerFailed
from rl.models.service import ModelService


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr("rl.models.pool.FIRST_PAUSE", 0.01)


@pytest.fixture
async def raw():
    """Starts a server that sends these bytes to whoever asks, and then nothing. closes: it hangs up."""
    servers = []

    async def start(data: bytes, *, closes: bool = False) -> str:
        async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(data)
            if closes:
                writer.close()

        servers.append(await asyncio.start_server(serve_one, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for one in servers:
        one.close()


def reply(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    given = (*headers, f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join((f"HTTP/1.1 {status}", *given, "", "")).encode() + body


@pytest.mark.parametrize(
    ("data", "closes", "error", "said"),
    [
        (
            reply(b"<html>Welcome</html>", "Content-Type: text/html"),
            False,
            NoApi,
            "no JSON: '<html>",
        ),
        (reply(b""), False, NoApi, "no JSON: ''"),
        (reply(b"\xff\xfe\x00"), False, NoApi, "no JSON"),
        (reply(b"[" * 100_000), False, NoApi, "no JSON"),
        (reply(b'{"choices": [', length=900), True, ServiceFault, "RemoteProtocolError"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", True, ServiceFault, "RemoteProtocolError"),
        (reply(b"", "Location: /login", status="302 Found"), False, Refused, "HTTP 302"),
        (reply(b"x" * 3000), False, ServiceFault, "longer than"),
    ],
)
async def test_what_is_no_answer_of_an_api_is_a_fault_and_never_hangs(
    raw, data, closes, error, said, monkeypatch
):
    if len(data) < 4000 and b"xxx" in data:
        monkeypatch.setattr("rl.models.http_wire.MOST_BYTES", 1000)
    async with ChatWire(await raw(data, closes=closes), model="tiny") as wire:
        with pytest.raises(error, match=said) as caught:
            await wire.send(question("a"))
    assert type(caught.value) is error


async def test_half_an_answer_and_then_silence_is_a_fault_at_the_deadline(raw):
    async with ChatWire(await raw(reply(b'{"choices"', length=900)), model="tiny") as wire:
        pool = pool_of(wire.send, request_seconds=0.2, hold_seconds=0.5)
        with pytest.raises(ModelFault, match=r"no answer to anybody for 0\.5 s, at last: .*0\.2 s"):
            await pool.ask(question("a"))
        await pool.close()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 7", 7),
        ("Retry-After: DATE", 60),
        ("Retry-After: soon", 0),
        ("Retry-After: -3", 0),
        ("Retry-After: inf", 0),
    ],
)
async def test_a_servers_own_pause_is_read(raw, header, seconds):
    header = header.replace("DATE", formatdate(time.time() + 60, usegmt=True))
    data = reply(b"slow down", header, status="429 Too Many Requests")
    async with ChatWire(await raw(data), model="tiny") as wire:
        with pytest.raises(ServiceFault) as caught:
            await wire.send(question("a"))
    assert caught.value.busy and caught.value.seconds == pytest.approx(seconds, abs=2)


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_nobody_is_sent_before_the_server_wants_to_be_asked_again(concurrency):
    times: list[float] = []

    async def send(request: ChatRequest) -> ChatAnswer:
        times.append(time.monotonic())
        if len(times) == 1:
            await asyncio.sleep(0.01)
            raise ServiceFault("HTTP 429", 0.3, busy=True)
        return ChatAnswer("yes")

    pool = pool_of(send, concurrency=concurrency)
    first = asyncio.create_task(pool.ask(question("a")))
    # Behind it in the queue where one may be sent at once, else after it.
    await asyncio.sleep(0 if concurrency == 1 else 0.05)
    others = await asyncio.gather(first, *(pool.ask(question(str(n))) for n in range(3)))
    assert [one.text for one in others] == ["yes"] * 4
    assert len(times) == 5 and times[1] - times[0] >= 0.29


@pytest.mark.parametrize(
    ("data", "table", "sentence"),
    [
        (reply(b"no", status="401 No"), {}, r"lets nobody in: .*401.*name its key \(key_env\)"),
        (reply(b"no", status="403 No"), {"key_env": "MY_KEY"}, "403: no; is MY_KEY right"),
        (reply(b"<html>"), {}, "no API of models: .*is its url right"),
        (reply(b"", status="404 Not Found"), {}, "names no models: .*is its url right"),
    ],
)
async def test_a_server_that_can_never_answer_is_told_of_at_the_start(
    raw, tmp_path, data, table, sentence
):
    one = ModelTable(name="judge", url=await raw(data), **table)
    service = ModelService(one, "k", tmp_path / "log", print)
    with pytest.raises(ServerFailed, match=sentence):
        await service.start()
    await service.close()


async def test_a_server_that_is_away_or_has_another_model_is_told_of_and_kept(raw, tmp_path):
    for data, model, sentence in (
        (reply(b"", status="503 Busy"), "", "is away .*503"),
        (reply(b"", status="404 Not Found"), "big", None),
        (reply(b'{"data": [{"id": "a"}]}'), "big", "offers a, and not 'big'"),
        (reply(b'{"data": [{"id": "big"}]}'), "big", None),
        (reply(b'{"data": {"id": 3}}'), "big", None),
    ):
        said: list[str] = []
        one = ModelTable(name="judge", url=await raw(data), model=model)
        service = ModelService(one, "", tmp_path / "log", said.append)
        await service.start()
        await service.close()
        assert [bool(re.search(sentence or "", text)) for text in said] == [True] * bool(sentence)
