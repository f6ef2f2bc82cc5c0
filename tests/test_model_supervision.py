"""Supervision of a frozen model's server, over a small one in vLLM's place: killed, hung, deaf, hopeless."""

import asyncio
import os
import signal
import sys

import psutil
import pytest

from envs.chat_model import ChatRequest, ModelFault
from envs.message import Message
from rl.env_table import BreakerConfig
from rl.model_table import ModelTable, ServeConfig
from rl.models.server import ServerFailed
from rl.models.service import ModelService

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]
# Answers health checks and questions; deaf to the latter where the file `deaf` is there.
SMALL_SERVER = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        while os.path.exists("DEAF"):
            time.sleep(0.05)
        key = self.headers["Authorization"]
        self.reply({"choices": [{"message": {"content": key + str(os.getpid())}}]})
    def reply(self, found):
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *rest):
        pass
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A service, what it has said, and the file that makes its server deaf."""
    deaf, said = tmp_path / "deaf", []

    def command(checkpoint: str, port: int, **rest: object) -> list[str]:
        if checkpoint == "broken":
            return [sys.executable, "-c", "raise ValueError('no such weights')"]
        script = SMALL_SERVER.replace("PORT", str(port)).replace("DEAF", str(deaf))
        return [sys.executable, "-c", script]

    monkeypatch.setattr("rl.models.server.server_command", command)
    for name, seconds in (("LOOK_SECONDS", 0.1), ("HEALTH_SECONDS", 0.3), ("END_SECONDS", 1.0)):
        monkeypatch.setattr(f"rl.models.server.{name}", seconds)
    table = ModelTable(
        name="judge",
        path="checkpoint",
        request_seconds=0.4,
        hold_seconds=20,
        breaker=BreakerConfig(faults=4, cooldown_seconds=0.1, max_cooldown_seconds=0.2),
        serve=ServeConfig(start_seconds=10, restarts=2),
    )
    return ModelService(table, "", tmp_path / "log", said.append), said, deaf


def asks(number: int) -> ChatRequest:
    return ChatRequest((Message("user", str(number)),))


def pid_of(service: ModelService) -> int:
    assert service.server is not None and service.server.process is not None
    return service.server.process.pid


async def test_a_server_that_dies_hangs_or_turns_deaf_is_started_again_and_no_call_is_lost(served):
    service, said, _ = served
    await service.start()
    first = pid_of(service)
    assert (await service.ask(asks(0))).text == f"Bearer {service.server.key}{first}"
    os.kill(first, signal.SIGKILL)
    await asyncio.gather(*(service.ask(asks(n)) for n in range(1, 5)))
    second = pid_of(service)
    os.kill(second, signal.SIGSTOP)
    await asyncio.gather(*(service.ask(asks(n)) for n in range(5, 9)))
    assert len({first, second, pid_of(service)}) == 3
    assert [
        ("server has ended" in one, "server hangs" in one) for one in said if "again (log" in one
    ] == [
        (True, False),
        (False, True),
    ]
    assert service.state().failed == 0
    last = pid_of(service)
    await service.close()
    assert not psutil.pid_exists(last)


async def test_one_that_is_healthy_and_answers_nobody_is_started_again(served):
    service, said, deaf = served
    await service.start()
    first = pid_of(service)
    deaf.touch()
    asked = asyncio.create_task(service.ask(asks(0)))
    while not said:
        await asyncio.sleep(0.05)
    deaf.unlink()
    assert str(first) not in (await asked).text
    assert "server hangs" in said[0]
    await service.close()


async def test_one_that_is_not_to_be_saved_fails_calls_with_a_reason(served):
    service, said, _ = served
    object.__setattr__(service.table, "hold_seconds", 1.5)
    await service.start()
    service.server.checkpoint = "broken"
    os.kill(pid_of(service), signal.SIGKILL)
    with pytest.raises(ModelFault, match=r"no answer to anybody for 1\.5 s"):
        await service.ask(asks(0))
    while not any("it is not started again" in one for one in said):
        await asyncio.sleep(0.05)
    assert "started 3 times" in service.state().line
    await service.close()


async def test_one_that_cannot_start_says_why(served):
    service, _, _ = served
    service.server.checkpoint = "broken"
    with pytest.raises(ServerFailed, match=r"ended while it started: .*no such weights"):
        await service.start()
    await service.close()
