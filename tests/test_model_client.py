"""A controller's client of a frozen model: what it does when the service's actor dies, hangs or fails."""

import asyncio
from collections.abc import Callable

import pytest
from ray.exceptions import RayActorError, RayTaskError

from envs.chat_model import ChatAnswer, ChatRequest, ModelFault
from envs.deadline import counting
from envs.message import Message
from rl.actors.heartbeat import Heartbeat
from rl.actors.local_handle import local_handle
from rl.actors.model_client import ModelClient
from rl.actors.model_service import ModelActor
from rl.model_table import ModelTable

REQUEST = ChatRequest((Message("user", "Is it?"),))


class Actor(ModelActor):
    """Does what it is told to, one act after the other; then answers."""

    def __init__(self, *acts: Exception | float, alive: bool = True) -> None:
        self.acts = list(acts)
        self.alive = alive
        self.asked = 0

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        self.asked += 1
        act = self.acts.pop(0) if self.acts else 0.0
        if isinstance(act, Exception):
            raise act
        await asyncio.sleep(act)
        return ChatAnswer("yes")

    async def heartbeat(self) -> Heartbeat:
        if not self.alive:
            await asyncio.Event().wait()
        return Heartbeat(1, "here")


@pytest.fixture
def client(monkeypatch) -> Callable[[Actor], ModelClient]:
    for name in ("LOOK_SECONDS", "LIFE_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(f"rl.actors.model_client.{name}", 0.03)

    def of(actor: Actor) -> ModelClient:
        found = local_handle(actor)
        monkeypatch.setattr("rl.actors.model_client.find_actor", lambda *_: found)
        return ModelClient(ModelTable(name="judge", url="http://x", hold_seconds=0.2), "run")

    return of


async def test_an_actor_that_dies_is_asked_again_until_it_is_back(client):
    actor = Actor(RayActorError(), RayActorError())
    assert (await client(actor).ask(REQUEST)).text == "yes"
    assert actor.asked == 3


async def test_one_that_stays_away_is_a_fault_of_the_model_in_time(client):
    actor = Actor(*[RayActorError() for _ in range(1000)])
    with pytest.raises(ModelFault, match="model 'judge': its actor is gone"):
        await client(actor).ask(REQUEST)
    assert actor.asked < 20


async def test_a_fault_in_the_actor_is_the_same_sentence_here(client):
    fault = RayTaskError("ask", "Traceback\nModelFault: oh", ModelFault("model 'judge': oh"))
    with pytest.raises(ModelFault) as caught:
        await client(Actor(fault)).ask(REQUEST)
    assert str(caught.value) == "model 'judge': oh"


async def test_an_answer_may_take_long_where_the_actor_lives_and_the_judges_clock_stands_still(
    client,
):
    async with asyncio.timeout(0.1) as deadline:
        with counting(deadline):
            assert (await client(Actor(0.3)).ask(REQUEST)).text == "yes"


async def test_an_actor_without_a_sign_of_life_is_given_up(client):
    with pytest.raises(ModelFault, match=r"its actor has not answered for 0\.03 s"):
        await client(Actor(60.0, alive=False)).ask(REQUEST)
