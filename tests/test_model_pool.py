"""The pool in front of a frozen model: queue, retries, hold, breaker, cache, budget; and its wire."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from envs.chat_model import ChatAnswer, ChatRequest, ModelFault
from envs.message import Message
from rl.env_table import BreakerConfig
from rl.model_table import ModelTable
from rl.models.call import Refused, ServiceFault
from rl.models.chat_wire import ChatWire
from rl.models.pool import Pool
from rl.models.structured import fits, fitting

Send = Callable[[ChatRequest], Awaitable[ChatAnswer]]
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["good", "bad"]}},
    "required": ["verdict"],
}


def question(text: str, **changes: Any) -> ChatRequest:
    return ChatRequest((Message("user", text),), **changes)


def pool_of(send: Send, **changes: Any) -> Pool:
    quick = {"request_seconds": 1.0, "hold_seconds": 2.0}
    breaker = BreakerConfig(faults=4, cooldown_seconds=0.05, max_cooldown_seconds=0.2)
    return Pool(
        ModelTable(name="judge", url="http://x", **{"breaker": breaker, **quick, **changes}), send
    )


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr("rl.models.pool.FIRST_PAUSE", 0.01)


async def test_equal_questions_are_paid_once_and_marked():
    sent = []

    async def send(request: ChatRequest) -> ChatAnswer:
        sent.append(request)
        await asyncio.sleep(0.02)
        return ChatAnswer("yes", prompt_tokens=3, completion_tokens=1)

    pool = pool_of(send)
    answers = await asyncio.gather(*(pool.ask(question("a")) for _ in range(5)))
    again = await pool.ask(question("a"))
    assert len(sent) == 1
    assert sorted(answer.cached for answer in (*answers, again)) == [False] + [True] * 5
    await pool.ask(question("a", number=1))
    await pool.ask(question("a", keep=False))
    await pool.ask(question("a", keep=False))
    assert len(sent) == 4, "another number, and what is not to be kept, are asked again"
    state = pool.state()
    assert (state.calls, state.cached, state.tokens) == (4, 5, 16)
    assert [c.outcome for c in pool.take_calls()].count("cached") == 5
    assert pool.take_calls() == []


async def test_no_more_at_once_than_the_limit_and_the_more_urgent_first():
    running, most, order = 0, 0, []

    async def send(request: ChatRequest) -> ChatAnswer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(request.messages[0].content)
        await asyncio.sleep(0.01)
        running -= 1
        return ChatAnswer("")

    pool = pool_of(send, concurrency=2)
    late = [pool.ask(question(f"judge {n}", priority=1)) for n in range(6)]
    urgent = [pool.ask(question(f"user {n}", priority=0)) for n in range(3)]
    await asyncio.gather(*late, *urgent)
    assert most == 2
    assert order[2:5] == ["user 0", "user 1", "user 2"], "the first two had begun before"


async def test_a_fault_of_the_service_is_held_until_it_is_back():
    down = True

    async def send(request: ChatRequest) -> ChatAnswer:
        if down:
            raise ServiceFault("no connection")
        return ChatAnswer("there")

    pool = pool_of(send)
    asked = [asyncio.create_task(pool.ask(question(str(n)))) for n in range(8)]
    await asyncio.sleep(0.4)
    assert pool.state().breaker in ("open", "half_open")
    assert not any(task.done() for task in asked)
    sent = pool.state().calls
    assert sent < 40, "while it rests, one call at a time probes it"
    down = False
    assert {answer.text for answer in await asyncio.gather(*asked)} == {"there"}
    assert pool.state().failed == 0


async def test_one_that_is_down_for_too_long_fails_every_call_with_a_reason_in_time():
    async def send(request: ChatRequest) -> ChatAnswer:
        raise ServiceFault("no connection")

    pool = pool_of(send, hold_seconds=0.3)
    start = time.monotonic()
    found = await asyncio.gather(
        *(pool.ask(question(str(n))) for n in range(20)), return_exceptions=True
    )
    assert time.monotonic() - start < 2
    assert all(isinstance(one, ModelFault) for one in found)
    assert "no answer to anybody for 0.3 s, at last: no connection" in str(found[0])
    assert pool.state().failed == 20


async def test_one_question_that_hangs_costs_only_itself():
    async def send(request: ChatRequest) -> ChatAnswer:
        if request.messages[0].content == "hang":
            await asyncio.Event().wait()
        return ChatAnswer("fine")

    pool = pool_of(send, concurrency=4, request_seconds=0.1, retries=1, hold_seconds=30)
    hanging = asyncio.create_task(pool.ask(question("hang")))
    others = 0
    while not hanging.done():
        assert (await pool.ask(question("other", keep=False))).text == "fine"
        others += 1
        await asyncio.sleep(0.005)
    with pytest.raises(ModelFault, match=r"failed 2 times, at last: no answer within 0.1 s"):
        await hanging
    assert others > 10
    assert pool.state().breaker == "closed"


async def test_a_deadline_begins_when_the_request_is_sent():
    async def send(request: ChatRequest) -> ChatAnswer:
        await asyncio.sleep(0.05)
        return ChatAnswer("")

    pool = pool_of(send, concurrency=1, request_seconds=0.2)
    await asyncio.gather(*(pool.ask(question(str(n))) for n in range(10)))
    assert pool.state().faults == 0, "the last one waited for its turn for longer than that"


async def test_answers_that_do_not_fit_are_asked_for_again_and_then_given_up():
    texts = iter(["perhaps", '{"verdict": "ugly"}', 'Well: {"verdict": "bad"} I think'])
    warm = []

    async def send(request: ChatRequest) -> ChatAnswer:
        warm.append(request.temperature)
        return ChatAnswer(next(texts, "perhaps"))

    pool = pool_of(send)
    answer = await pool.ask(question("a", schema=SCHEMA))
    assert json.loads(answer.text) == {"verdict": "bad"}
    assert warm == [0.0, 0.7, 0.7]
    assert pool.state().nonsense == 2
    with pytest.raises(
        ModelFault, match="3 answers did not fit the schema, the last was 'perhaps'"
    ):
        await pool.ask(question("b", schema=SCHEMA))
    assert pool.state().breaker == "closed", "a service that answers nonsense is not down"


async def test_the_budget_is_never_overdrawn_by_a_call():
    async def send(request: ChatRequest) -> ChatAnswer:
        await asyncio.sleep(0.001)
        return ChatAnswer("", prompt_tokens=10)

    pool = pool_of(send, max_calls=5, concurrency=4)
    found = await asyncio.gather(
        *(pool.ask(question(str(n))) for n in range(12)), return_exceptions=True
    )
    failed = [one for one in found if isinstance(one, ModelFault)]
    assert (pool.state().calls, len(failed), pool.state().calls_left) == (5, 7, 0)
    assert "its budget of 5 calls is spent (models.max_calls)" in str(failed[0])
    pool = pool_of(send, max_tokens=25, concurrency=1)
    for n in range(3):
        await pool.ask(question(str(n)))
    with pytest.raises(ModelFault, match="budget of 25 tokens"):
        await pool.ask(question("more"))


async def test_who_gives_up_ends_a_question_that_nobody_else_waits_for():
    cancelled = []

    async def send(request: ChatRequest) -> ChatAnswer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request)
            raise
        raise AssertionError

    pool = pool_of(send)
    two = [asyncio.create_task(pool.ask(question("a"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    two[0].cancel()
    await asyncio.sleep(0.01)
    assert not cancelled
    two[1].cancel()
    await asyncio.gather(*two, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert len(cancelled) == 1
    assert (pool.state().running, pool.state().waiting) == (0, 0)


async def test_what_the_service_refuses_is_not_sent_again():
    async def send(request: ChatRequest) -> ChatAnswer:
        raise Refused("HTTP 401: wrong key")

    pool = pool_of(send)
    with pytest.raises(ModelFault, match="HTTP 401: wrong key"):
        await pool.ask(question("a"))
    assert pool.state().calls == 1


def answered(text: str, **more: Any) -> dict[str, Any]:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    return {"choices": [choice], "usage": usage, "model": "tiny", **more}


async def test_the_wire_speaks_to_an_openai_server(serve):
    server = serve(lambda body: (200, answered("yes")))
    async with ChatWire(server.url) as wire:
        answer = await wire.send(question("Is it?", schema=SCHEMA, temperature=0.5, number=3))
    assert answer == ChatAnswer("yes", "tiny", 7, 2)
    [body] = server.asked
    assert body["model"] == "tiny", "the first that the server offers"
    assert body["messages"] == [{"role": "user", "content": "Is it?"}]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert body["seed"] == 3


@pytest.mark.parametrize(
    ("status", "found", "error", "said"),
    [
        (500, {"error": "oh"}, ServiceFault, "HTTP 500"),
        (429, {"error": "slow down"}, ServiceFault, "HTTP 429"),
        (200, {"answer": 42}, ServiceFault, r"no choices\[0\].message"),
        (200, [1], ServiceFault, "no JSON object"),
        (404, {"error": "no such model"}, Refused, "HTTP 404"),
        (400, {"error": "too long"}, Refused, "HTTP 400"),
    ],
)
async def test_what_goes_wrong_on_the_wire_has_its_class(serve, status, found, error, said):
    server = serve(lambda body: (status, found))
    async with ChatWire(server.url, model="tiny") as wire:
        with pytest.raises(error, match=said) as caught:
            await wire.send(question("a"))
    if isinstance(caught.value, ServiceFault):
        assert caught.value.busy == (status == 429)


async def test_no_server_is_a_fault_of_the_service():
    async with ChatWire("http://127.0.0.1:9", model="tiny") as wire:
        with pytest.raises(ServiceFault, match="ConnectError"):
            await wire.send(question("a"))


async def test_a_server_that_dies_and_comes_back_costs_no_call(serve):
    ways = iter([(500, {}), (503, {}), (200, "nonsense")])
    server = serve(lambda body: next(ways, (200, answered("yes"))))
    async with ChatWire(server.url, model="tiny") as wire:
        pool = pool_of(wire.send)
        assert (await pool.ask(question("a"))).text == "yes"
    assert (pool.state().calls, pool.state().faults) == (4, 3)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"verdict": "good"}', "good"),
        ('for example {"verdict": "good"}, so {"verdict": "bad"}.', "bad"),
        ('{"verdict": "good"} {"other": 1}', "good"),
        ('{"a": {"verdict": "good"}}', None),
        ('{"verdict": 1}', None),
        ('{"verdict": " Good"}', "good"),
        ('{"verdict": "good, or bad"}', None),
        ('{"verdict": "good"', None),
        ("", None),
    ],
)
def test_the_last_object_that_fits_is_the_answer(text, found):
    fit = fitting(text, SCHEMA)
    assert (None if fit is None else json.loads(fit)["verdict"]) == found


def test_outlines_are_checked_in_depth():
    schema = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}},
    }
    assert fits([{"n": 0}, {}], schema)
    for wrong in ([], [{"n": -1}], [{"n": True}], [{"n": "1"}], {"n": 1}):
        assert not fits(wrong, schema)
