"""Actors that answer, are late or are gone, and what engines did as spans."""

import asyncio
from types import SimpleNamespace

import pytest
from fakes import Remote
from ray.exceptions import RayActorError

from rl.actors import heartbeat
from rl.actors.heartbeat import Heartbeat, Heartbeats, IdleTime
from rl.fleet import engine_events
from rl.fleet.engine_events import EngineSpans


def actor(act) -> Remote:
    return Remote(act)


async def test_who_answers_is_seen_and_who_does_not_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(heartbeat, "ANSWER_SECONDS", 0.05)
    late, asked = asyncio.Event(), []

    async def answers() -> Heartbeat:
        return Heartbeat(7, "10.0.0.1", ((1.0, 2.0),))

    async def waits() -> Heartbeat:
        asked.append("b")
        await late.wait()
        return Heartbeat(8, "10.0.0.2")

    async def is_gone() -> Heartbeat:
        raise RayActorError(error_msg="the process has died")

    handles = {"a": actor(answers), "b": actor(waits), "c": actor(is_gone)}
    heartbeats = Heartbeats(lambda: handles)
    assert await heartbeats.ask() == {"a": Heartbeat(7, "10.0.0.1", ((1.0, 2.0),))}
    a, b, c = heartbeats.states()
    assert (a.pid, a.node, a.asked, a.fault) == (7, "10.0.0.1", None, "") and a.seen is not None
    assert (b.pid, b.seen) == (None, None) and b.asked is not None
    assert c.asked is None and "the process has died" in c.fault
    since = b.asked
    await heartbeats.ask()
    assert asked == ["b"], "who owes an answer is not asked again"
    assert heartbeats.states()[1].asked == since
    late.set()
    assert (await heartbeats.ask())["b"] == Heartbeat(8, "10.0.0.2")
    assert heartbeats.states()[1].asked is None
    heartbeats.close()


def test_an_engine_is_idle_between_requests_and_not_within_them(monkeypatch):
    now = 100.0
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(time=lambda: now))
    idle = IdleTime()
    now = 103.0
    with idle.request(), idle.request():
        now = 110.0
        assert idle.take() == ((100.0, 103.0),)
    now = 110.05  # too short to be seen
    with idle.request():
        now = 111.0
    now = 120.0
    assert idle.take() == (), "it goes on"
    now = 150.0
    assert idle.take() == ((111.0, 150.0),), "in pieces"
    now = 151.0
    with idle.request():
        assert idle.take() == ((150.0, 151.0),)


@pytest.fixture
def spans(monkeypatch):
    """Lanes over a clock that goes on by a second with each look at it, and what they record."""
    ticks = iter(range(100, 1000))
    monkeypatch.setattr(engine_events, "time", SimpleNamespace(time=lambda: float(next(ticks))))
    written: list[tuple] = []

    def record(lane: str, name: str, start: float, end: float, **details) -> None:
        written.append((lane, name, start, end, *details.values()))

    return EngineSpans(record), written


def test_every_version_load_and_sleep_of_an_engine_is_one_span(spans):
    lanes, written = spans
    lanes.serve({"engine-0": 0, "engine-1": 0})
    lanes.loaded({"engine-0": (1, 15.2)}, 100.5)
    assert written == [
        ("engine-0", "version 0", 100.0, 100.5),
        ("engine-0", "load version 1", 100.5, 101.0, "requests stood still for 15 ms"),
    ]
    written.clear()
    lanes.sleep(["engine-1"])
    lanes.wake()
    lanes.close()
    assert sorted(written) == [
        ("engine-0", "version 1", 101.0, 105.0),
        ("engine-1", "asleep", 102.0, 103.0),
        ("engine-1", "version 0", 100.0, 105.0),
    ]


def test_of_many_bubbles_the_longest_are_kept_and_a_window_is_said_once(spans):
    lanes, written = spans
    stretches = [(float(n), n + 0.1 + 0.01 * n) for n in range(engine_events.MOST_IDLE + 5)]
    lanes.idle("engine-0", stretches)
    assert [start for _, _, start, _ in written] == [s for s, _ in stretches[5:]]
    written.clear()
    for versions in ((0, 1), (0, 1), (1, 2)):
        lanes.window(versions)
    assert [name for _, name, *_ in written] == ["versions 0 1", "versions 1 2"]
