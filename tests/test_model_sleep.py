"""Sleep of a served model: when it is told to, who wakes it, what holds after a fault; its routes' guard."""

import asyncio
from typing import Any

import pytest

from envs.chat_model import ChatAnswer, ChatRequest
from envs.message import Message
from rl.model_table import ModelTable
from rl.models.call import Refused, ServiceFault
from rl.models.http_wire import HttpWire
from rl.models.service import ModelService
from rl.models.sleep import SLEEP, WAKE, Sleeper
from rollout.key_guard import NAME, KeyGuard
from rollout.vllm_server import server_command, server_environment

QUIET = 0.02
CUDA = {"device": "cuda", "gpus": 0.5, "sleep_seconds": QUIET}


class Vllm:
    """Its server: `awake` as it is, and what it was told. fails: the next answers to a path."""

    def __init__(self) -> None:
        self.awake = True
        self.told: list[str] = []
        self.said: list[str] = []
        self.fails: dict[str, list[Exception]] = {}

    async def post(self, path: str) -> dict[str, Any]:
        self.told.append(path)
        await asyncio.sleep(0)
        self.awake = path == WAKE  # also where the answer is lost
        if self.fails.get(path):
            raise self.fails[path].pop(0)
        return {"status": "awake" if self.awake else "sleeping"}


@pytest.fixture
async def sleeping():
    vllm = Vllm()
    sleeper = Sleeper(QUIET, vllm.post, vllm.said.append)
    watching = asyncio.create_task(sleeper.watch())
    yield vllm, sleeper
    watching.cancel()


async def until(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


async def test_one_that_is_idle_sleeps_once_and_is_woken_once_by_many(sleeping):
    vllm, sleeper = sleeping
    await until(lambda: sleeper.asleep and not vllm.awake)
    await asyncio.sleep(3 * QUIET)
    assert vllm.told == [SLEEP]

    async def ask() -> bool:
        async with sleeper.awake():
            await asyncio.sleep(2 * QUIET)  # longer than idle models may be
            return vllm.awake

    assert all(await asyncio.gather(*(ask() for _ in range(5))))
    assert vllm.told == [SLEEP, WAKE]
    await until(lambda: len(vllm.told) == 3)
    assert vllm.told[-1] == SLEEP and not vllm.said


async def test_a_lost_answer_or_a_wake_that_is_given_up_leaves_it_to_be_woken(sleeping):
    vllm, sleeper = sleeping
    vllm.fails = {SLEEP: [ServiceFault("reset")], WAKE: [ServiceFault("reset"), Refused("500")]}
    await until(lambda: bool(vllm.said))
    assert "may not be asleep: reset" in vllm.said[0]
    for _ in range(2):
        with pytest.raises(ServiceFault):
            async with sleeper.awake():
                raise AssertionError("it is not known to be awake")
    async with sleeper.awake():
        assert vllm.awake and not sleeper.asleep


async def test_a_server_without_sleep_is_told_of_and_asked_as_ever(sleeping):
    vllm, sleeper = sleeping
    vllm.fails = {SLEEP: [Refused("HTTP 404")]}
    await until(lambda: bool(vllm.said))
    async with sleeper.awake():
        pass
    await asyncio.sleep(3 * QUIET)
    assert vllm.told == [SLEEP] and vllm.said == ["it cannot sleep: HTTP 404"]


async def test_a_service_wakes_its_model_for_a_question_and_says_that_it_sleeps(tmp_path):
    vllm = Vllm()

    class Wire(HttpWire):
        async def asked(self, method: str, path: str, body: object = None) -> dict[str, Any]:
            return await vllm.post(path)

        async def send(self, request: ChatRequest) -> ChatAnswer:
            assert vllm.awake
            return ChatAnswer("yes")

    table = ModelTable.model_validate({"name": "judge", "path": "x", "serve": CUDA})
    service = ModelService(table, "", tmp_path / "log", print)
    service.wire = Wire("http://x")  # pyright: ignore[reportAttributeAccessIssue]
    assert service.sleeper is not None
    watching = asyncio.create_task(service.sleeper.watch())
    await until(lambda: not vllm.awake)
    assert service.state().server == "its server is not running, asleep"
    assert (await service.ask(ChatRequest((Message("user", "a"),)))).text == "yes"
    assert vllm.told[:2] == [SLEEP, WAKE]
    watching.cancel()
    assert HttpWire("http://x/v1")._address(SLEEP) == f"http://x{SLEEP}"


def test_what_cannot_sleep_is_refused(checkpoint):
    with pytest.raises(ValueError, match="sleep_seconds: vLLM gives memory of a GPU back"):
        ModelTable.model_validate({"name": "m", "path": "x", "serve": {"sleep_seconds": 9}})
    slow = CUDA | {"sleep_seconds": 900}
    with pytest.raises(ValueError, match="or the anchors never let it sleep"):
        ModelTable.model_validate({"name": "m", "path": "x", "use": "reward", "serve": slow})
    sizes = {"max_model_len": 512, "max_num_seqs": 4, "given": {}}
    command = server_command(str(checkpoint), 1, device="cuda", dtype="auto", sleeps=True, **sizes)
    assert "--enable-sleep-mode" in command and command[command.index("--middleware") + 1] == NAME
    asked = {"device": "cuda", "threads": 1, "kv_cache_gib": 1, "key": "k"}
    assert server_environment(**asked, sleeps=True)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in server_environment(**asked)


@pytest.mark.parametrize(
    ("path", "key", "passes"),
    [
        ("/collective_rpc", b"", False),
        ("/sleep", b"Bearer wrong", False),
        ("/sleep", b"Bearer k", True),
        ("/health", b"", True),
    ],
)
async def test_every_route_but_health_asks_for_the_key(path, key, passes, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "k")
    reached, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    async def receive() -> Any:
        return {}

    scope = {"type": "http", "path": path, "headers": [(b"authorization", key)]}
    await KeyGuard(app)(scope, receive, send)
    assert (reached, sent) == (([path], []) if passes else ([], [401, None]))
