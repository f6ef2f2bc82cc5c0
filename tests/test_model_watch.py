"""The run's watch over frozen models: their state, their calls as events, what the user reads."""

import asyncio
from typing import Any, cast

import pytest

from rl.actors.local_handle import local_handle
from rl.actors.model_service import ModelActor, ModelReport
from rl.loop.model_watch import ModelWatch
from rl.models.call import Call
from rl.record.journal import Journal
from rl.record.model_state import ModelState


class Folder:
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def event(self, lane: str, name: str, start: float, end: float, **details: object) -> None:
        self.events.append((lane, name, start, end, details))


class Told:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


class Service(ModelActor):
    def __init__(self) -> None:
        self.reports: list[ModelReport] = []

    async def report(self) -> ModelReport:
        if not self.reports:
            await asyncio.Event().wait()
        return self.reports.pop(0)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr("rl.loop.model_watch.ANSWER_SECONDS", 0.05)
    service, folder, told = Service(), Folder(), Told()
    handle = local_handle(service)
    watch = ModelWatch(
        {"critic": cast(type[ModelActor], handle)}, Journal(cast(Any, told), cast(Any, folder))
    )
    return watch, service, folder, told


async def test_calls_are_events_and_a_breaker_is_told_of_once(watched):
    watch, service, folder, told = watched
    rests = ModelState(name="critic", breaker="open", said="no connection")
    service.reports = [
        ModelReport(
            rests, (Call(1.0, 2.0, "answered", 30), Call(2.0, 5.0, "fault", said="oh")), ("hm",)
        ),
        ModelReport(rests, (), ()),
        ModelReport(ModelState(name="critic", breaker="half_open"), (), ()),
        ModelReport(ModelState(name="critic"), (), ()),
    ]
    [state] = await watch.look()
    assert state is rests
    assert folder.events[-2:] == [
        ("model critic", "answered", 1.0, 2.0, {"tokens": 30}),
        ("model critic", "fault", 2.0, 5.0, {"said": "oh"}),
    ]
    for _ in range(3):
        await watch.look()
    assert told.notes == [
        "hm",
        "model 'critic' rests after faults: no connection; calls are held",
        "model 'critic' answers again",
    ]


async def test_a_service_that_does_not_answer_holds_nobody_up_and_is_named(watched):
    watch, _, _, _ = watched
    [state] = await watch.look()
    assert state.said == "its actor does not answer"
    assert "critic answers; 0 running" in state.line


def test_the_line_of_a_status_says_what_matters():
    state = ModelState(name="j", breaker="open", waiting=3, calls=1200, tokens=9000, cached=4, faults=2,
                       calls_left=10, server="vLLM server 7 on port 8", said="oh")  # fmt: skip
    assert state.line == (
        "j rests after faults; 0 running, 3 waiting; 1,200 requests (9,000 tokens), 4 answers from the "
        "cache; 2 faults; 10 requests left; vLLM server 7 on port 8; last: oh"
    )
    assert "has not answered for 40 s" in ModelState(name="j", silent=40.0).line
