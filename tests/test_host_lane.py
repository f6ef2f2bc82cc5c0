"""A lane: many acts in one call, each answered as soon as it is done, and none lost when the host dies."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes import Remote
from ray.exceptions import RayActorError

from envs.session import EnvFault
from rl.host_lane import Answers, HostEnd, Lane, Load


class Host:
    """A host whose acts are `say`, which answers at once, and `wait`, which waits for `go`."""

    def __init__(self) -> None:
        self.end = HostEnd(self.play)
        self.go = asyncio.Event()
        self.waiting = 0
        self.calls: list[int] = []
        self.broken: Exception | None = None
        self.exchange = Remote(self._exchange)

    async def play(self, method: str, value: Any = None) -> Any:
        if method == "wait":
            self.waiting += 1
            await self.go.wait()
        if isinstance(value, Exception):
            raise value
        return value

    async def _exchange(self, name: str, born: int, acts: tuple) -> Answers:
        self.calls.append(len(acts))
        answering = asyncio.ensure_future(self.end.exchange(acts))
        while not answering.done():
            if self.broken:
                answering.cancel()
                raise self.broken
            await asyncio.sleep(0)
        return Answers(answering.result(), Load("node", len(self.calls), 1.0))


class Unreadable:
    """Can be sent, and cannot be read where it arrives."""

    def __reduce__(self):
        return _not_there, ()


def _not_there() -> None:
    raise ImportError("not installed here")


async def turns(condition: Callable[[], Any]) -> None:
    """Let the event loop turn until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def settled(lane: Lane) -> None:
    """Nothing is open any more, and no call either."""
    await turns(lambda: not (lane.calls or lane.tasks or lane.sent or lane.unsent))


async def test_what_is_asked_together_goes_as_one_call():
    host = Host()
    lane = Lane(host, "c", 1)
    assert await asyncio.gather(*(lane.ask("say", n) for n in range(50))) == list(range(50))
    assert host.calls[0] == 50
    await settled(lane)


async def test_a_slow_act_delays_no_other_and_comes_when_it_is_done():
    host = Host()
    lane = Lane(host, "c", 1)
    slow = [asyncio.create_task(lane.ask("wait", f"slow {n}")) for n in range(3)]
    for number in range(20):
        assert await lane.ask("say", number) == number
        assert len(lane.tasks) <= 2
    assert not any(task.done() for task in slow)
    host.go.set()
    assert await asyncio.gather(*slow) == ["slow 0", "slow 1", "slow 2"]
    await settled(lane)


async def test_while_slow_acts_wait_there_is_one_call_and_it_is_not_made_again_and_again():
    host = Host()
    lane = Lane(host, "c", 1)
    slow = asyncio.create_task(lane.ask("wait"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert host.calls == [1]
    host.go.set()
    await slow


async def test_what_an_act_raises_is_its_own():
    lane = Lane(Host(), "c", 1)
    asked = [lane.ask("say", EnvFault("tool", "the world is gone", "trace")), lane.ask("say", 7)]
    fault, other = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(fault, EnvFault) and (fault.kind, fault.trace) == ("tool", "trace")
    assert other == 7


async def test_an_environment_that_cancels_itself_is_at_fault():
    async def play(method: str) -> None:
        raise asyncio.CancelledError

    host = Host()
    host.end = HostEnd(play)
    with pytest.raises(EnvFault, match="step: the environment cancelled its own task"):
        await Lane(host, "c", 1).ask("step")


async def test_a_result_that_cannot_be_sent_fails_alone():
    async def play(method: str, value: int) -> Any:
        return (lambda: value) if method == "odd" else value

    host = Host()
    host.end = HostEnd(play)
    lane = Lane(host, "c", 1)
    asked = [lane.ask("odd", 1), lane.ask("say", 2)]
    fault, other = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(fault, EnvFault) and "odd: its result cannot be sent" in str(fault)
    assert other == 2


async def test_when_the_host_dies_what_was_there_fails_and_what_comes_after_does_not():
    host = Host()
    lane = Lane(host, "c", 1)
    lost = [asyncio.create_task(lane.ask("wait", n)) for n in range(3)]
    await turns(lambda: len(lane.sent) == 3)
    host.broken = RayActorError()
    answers = await asyncio.gather(*lost, return_exceptions=True)
    assert all(isinstance(answer, RayActorError) for answer in answers)
    host.broken, host.end = None, HostEnd(host.play)
    assert await lane.ask("say", 4) == 4
    await settled(lane)


async def test_a_host_that_was_only_out_of_reach_answers_what_is_asked_after_it():
    host = Host()
    lane = Lane(host, "c", 1)
    lost = [asyncio.create_task(lane.ask("wait", n)) for n in range(2)]
    await turns(lambda: host.waiting == 2)
    host.broken = RayActorError()
    answers = await asyncio.gather(*lost, return_exceptions=True)
    assert all(isinstance(answer, RayActorError) for answer in answers)
    host.broken = None
    # The host still plays what was lost, and answers it together with what comes after it.
    later = asyncio.create_task(lane.ask("wait", 4))
    await turns(lambda: host.waiting == 3)
    host.go.set()
    assert await asyncio.wait_for(later, 10) == 4
    await settled(lane)


async def test_an_act_that_the_host_cannot_read_is_answered():
    host = Host()
    lane = Lane(host, "c", 1)
    asked = [lane.ask("say", Unreadable()), lane.ask("say", 2)]
    error, other = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
    assert isinstance(error, ImportError) and other == 2


async def test_who_has_gone_is_not_answered_and_holds_nothing_up():
    host = Host()
    lane = Lane(host, "c", 1)
    gone = asyncio.create_task(lane.ask("wait"))
    await turns(lambda: lane.sent)
    gone.cancel()
    lane.tell("say", 1)
    assert await lane.ask("say", 2) == 2
    host.go.set()
    await settled(lane)


async def test_each_answer_brings_the_hosts_load():
    heard: list[Load] = []
    lane = Lane(Host(), "c", 1, heard.append)
    await lane.ask("say", 1)
    assert heard == [Load("node", 1, 1.0)]
