"""Judges beside the controller's event loop: one that blocks its own is a fault and nothing more."""

import asyncio
import os
import posix
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from fakes import trajectory

from envs.process_end import ends_refused
from reward.score import JudgeFault, score
from rl.actors.judge_loop import JudgeLoop


@pytest.fixture
def judges(monkeypatch) -> Iterator[JudgeLoop]:
    monkeypatch.setattr("rl.actors.judge_loop.BEAT_SECONDS", 0.02)
    loop = JudgeLoop(0.5)
    yield loop
    loop.close()
    for thread in threading.enumerate():
        if thread.name == "dorado-judges":
            thread.join(5)


async def fine(task, trajectory):
    await asyncio.sleep(0)
    return {"fine": 1.0}


async def blocks(task, trajectory):
    time.sleep(1.5)
    return {"late": 1.0}


async def leaves(task, trajectory):
    asyncio.get_running_loop().call_soon(sys.exit)
    await asyncio.sleep(0.1)
    return {"left": 1.0}


def judged(judges: JudgeLoop, judge):
    return judges.run(score(trajectory(), [judge], {}, seconds=9))


async def test_what_judges_find_and_what_they_raise_comes_back(judges):
    assert (await judged(judges, fine)).rewards == {"solved": 1.0, "fine": 1.0}

    async def broken(task, trajectory):
        raise ValueError("ill")

    with pytest.raises(JudgeFault, match="judge broken: ValueError: ill"):
        await judged(judges, broken)


async def test_an_exit_in_a_callback_that_a_judge_has_left_ends_nothing(judges):
    assert (await judged(judges, leaves)).rewards == {"solved": 1.0, "left": 1.0}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda: os._exit(3), r"_exit\(3\)"),
        (lambda: posix._exit(0), "_exit"),
        (lambda: os.abort(), r"abort\(\)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"kill\(\d+, <Signals.SIGKILL: 9>\)"),
        (lambda: os.killpg(0, signal.SIGTERM), "killpg"),
        (lambda: signal.raise_signal(signal.SIGABRT), "raise_signal"),
        (lambda: os.execv("/bin/true", ["true"]), "execv"),
        (lambda: os.execlp("true", "true"), "execv"),
    ],
)
@pytest.mark.parametrize("where", ["act", "task", "thread"])
async def test_a_judge_that_ends_its_process_is_a_fault_with_its_name(judges, how, said, where):
    async def ending(task, trajectory):
        if where == "thread":
            await asyncio.to_thread(how)
        elif where == "task":
            await asyncio.gather(asyncio.create_task(nested()))
        else:
            await nested()
        return {"left": 1.0}

    async def nested():
        how()

    with ends_refused():
        with pytest.raises(JudgeFault, match=f"judge ending: .*it called {said}.*raise in place"):
            await judged(judges, ending)
        assert (await judged(judges, fine)).reward == 2.0


async def test_a_process_that_a_judge_forks_ends_as_it_likes(judges):
    async def forks(task, trajectory):
        if (child := os.fork()) == 0:
            os._exit(7)
        _, status = os.waitpid(child, 0)
        os.kill(os.getpid(), 0)  # a question, no signal
        return {"status": float(os.waitstatus_to_exitcode(status))}

    with ends_refused():
        assert (await judged(judges, forks)).rewards["status"] == 7.0


@pytest.mark.heavy
async def test_a_judge_that_blocks_its_event_loop_is_a_fault_and_others_go_on(judges):
    start = time.monotonic()
    asking = asyncio.create_task(judged(judges, blocks))
    await asyncio.sleep(0.1)
    assert time.monotonic() - start < 0.4, "the loop of whoever asks goes on"
    with pytest.raises(JudgeFault, match=r"a judge has blocked the event loop for 0\.5 s"):
        await asking
    assert (await judged(judges, fine)).reward == 2.0


async def test_who_is_cancelled_cancels_the_judge(judges):
    ended = threading.Event()

    async def waits(task, trajectory):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    asking = asyncio.create_task(judged(judges, waits))
    await asyncio.sleep(0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await asyncio.to_thread(ended.wait, 5)
