"""Judges, how they are found, and how their findings become one reward or a fault."""

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest
from fakes import TASK, trajectory, turn

from envs.deadline import paused
from envs.env import Task
from reward.answer import check_references, exact, final_answer, mathematics
from reward.comparing import _Worker
from reward.format import well_formed
from reward.registry import UnknownJudge, find_judge
from reward.score import JudgeFault, score

NOT_A_JUDGE = 3


def answering(text: str):
    return trajectory(turns=(turn(text="first"), turn(text=text)))


async def style(task, trajectory):
    return {"style": 0.5}


async def broken(task, trajectory):
    raise RuntimeError("the judge is ill")


async def slow(task, trajectory):
    await asyncio.Event().wait()


async def late(task, trajectory):
    raise TimeoutError("the far end was slow")


async def undecided(task, trajectory):
    return {"style": float("nan")}


async def exits(task, trajectory):
    raise SystemExit(2)


async def interrupts(task, trajectory):
    raise KeyboardInterrupt


async def leaves(task, trajectory):
    raise GeneratorExit


async def cancels(task, trajectory):
    raise asyncio.CancelledError


async def undecodable(task, trajectory):
    raise ValueError("no file caf\udce9")


async def silent(task, trajectory):
    return None


async def numbered(task, trajectory):
    return {1: 0.5}


async def infinite(task, trajectory):
    return {"style": np.float32("inf")}


async def foreign(task, trajectory):
    return {np.str_("style"): np.float32(0.5), "depth": np.int64(2)}


def test_the_final_answer_is_the_last_turns_text():
    assert final_answer(answering(" 42 \n")) == "42"
    assert final_answer(trajectory(turns=())) == ""


async def test_exact_wants_the_reference_letter_by_letter():
    assert await exact(TASK, answering(" 42")) == {"exact": 1.0}
    assert await exact(TASK, answering("42.0")) == {"exact": 0.0}
    assert await exact(Task("x", {"answer": 42}), answering("42")) == {"exact": 1.0}


@pytest.mark.heavy
async def test_mathematics_wants_an_equal_expression():
    cases = [
        ("1/2", "$0.5$", 1.0),
        ("(x-1)(x+1)", r"so it is \boxed{x^2-1}", 1.0),
        ("42", "$41$ and I do not know", 0.0),
    ]
    found = await asyncio.gather(
        *(mathematics(Task("x", {"answer": wanted}), answering(said)) for wanted, said, _ in cases)
    )
    assert found == [{"mathematics": right} for *_, right in cases]


def test_mathematics_judges_outside_the_main_thread_as_well():
    """Ray runs an asynchronous actor's event loop in a thread of its own."""
    found: list[object] = []

    def judge() -> None:
        try:
            found.append(asyncio.run(mathematics(TASK, answering("$42$"))))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    assert found == [{"mathematics": 1.0}]


async def test_a_comparison_over_its_deadline_is_a_judge_fault_and_leaves_no_process():
    def comparing() -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children():
            with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # it has ended
                found += [process] if "reward.comparing" in " ".join(process.cmdline()) else []
        return found

    before = comparing()  # idle ones, which others have started
    with pytest.raises(JudgeFault, match=r"mathematics: no answer within 0\.05 s"):
        await score(answering("$9^{9^{9^9}}$"), [mathematics], {}, seconds=0.05)
    started = [process for process in comparing() if process not in before]
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, 10)
    assert alive == []


async def judged(reference: object, said: str, seconds: float = 30) -> float:
    task = Task("x", {"question": "how many?", "answer": reference})
    one = replace(answering(said), task=task)
    return (await score(one, [mathematics], {}, seconds=seconds)).rewards["mathematics"]


@pytest.mark.heavy
async def test_many_right_answers_at_once_are_all_right():
    """The deadline is for the work of one, and not for waiting behind all others."""
    asked = [("x^2+1", r"so it is \boxed{1+x^2}"), *[("1/2", "It is $0.5$.")] * 7] * 32
    assert await asyncio.gather(*(judged(*pair, seconds=10) for pair in asked)) == [1.0] * 256


@pytest.mark.heavy
async def test_a_large_process_keeps_the_comparing_process_that_it_starts(monkeypatch):
    """A new process begins with its starter's `ru_maxrss`: each answer would have a process of its own."""
    monkeypatch.setattr("reward.comparing.GROWN_BYTES", 300 << 20)
    monkeypatch.setattr("reward.comparing._idle", idle := [])
    large = b"x" * (400 << 20)
    assert await judged("1/2", "It is $0.5$.") == 1.0
    began = [worker.process.pid for worker in idle]
    assert await judged("1/3", "It is $0.5$.") == 0.0
    assert ([worker.process.pid for worker in idle], len(began), large[0]) == (began, 1, ord("x"))
    assert idle[0].process.poll() is None


@pytest.mark.slow
async def test_a_comparing_process_that_has_grown_is_replaced(monkeypatch):
    """Each answer has a new process where none may be as large as it is; none is a fault."""
    pids, began = set(), _Worker.__init__

    def seen(worker):
        began(worker)
        pids.add(worker.process.pid)

    monkeypatch.setattr("reward.comparing.GROWN_BYTES", 1)
    monkeypatch.setattr(_Worker, "__init__", seen)
    monkeypatch.setattr("reward.comparing._idle", [])
    for number in range(2):
        assert await judged("1/2", f"After {number} tries it is $0.5$.") == 1.0
    assert len(pids) == 2


@pytest.mark.slow
async def test_an_answer_that_takes_more_work_than_any_right_one_is_wrong():
    assert await judged("5", r"$10^{10^{10}}$") == 0.0


async def test_a_judges_clock_stands_still_while_it_waits_for_its_turn():
    async def patient(task, trajectory):
        with paused():
            await asyncio.sleep(0.3)
        return {"patient": 1.0}

    found = await score(answering("42"), [patient], {}, seconds=0.1)
    assert found.rewards["patient"] == 1.0


async def test_a_judge_that_waits_for_several_things_has_its_clock_stopped_until_the_last_is_there():
    async def waits(seconds):
        with paused():
            await asyncio.sleep(seconds)

    async def patient(task, trajectory):
        await asyncio.gather(*map(waits, (0.02, 0.25, 0.1)))
        await asyncio.sleep(0.02)
        return {"patient": 1.0}

    async def slow(task, trajectory):
        await asyncio.gather(*map(waits, (0.02, 0.05)))
        await asyncio.sleep(5)
        return {"slow": 1.0}

    assert (await score(answering("42"), [patient], {}, seconds=0.1)).rewards["patient"] == 1.0
    with pytest.raises(JudgeFault, match=r"no answer within 0\.1 s"):
        await score(answering("42"), [slow], {}, seconds=0.1)


@pytest.mark.parametrize("reference", ["", "$$", r"\frac{1}{", "???", "x^", "1/0"])
async def test_a_reference_that_is_not_equal_to_itself_is_refused_by_name(reference):
    sentence = (
        r"environment 'x', task \w+ \('how many\?'\): the reference answer .* cannot be judged"
    )
    with pytest.raises(JudgeFault, match=sentence):
        await judged(reference, "5")
    answers = enumerate(("7", "x+1", reference), 1)
    tasks = [(f"row {n}", Task("x", {"question": "how many?", "answer": a})) for n, a in answers]
    with pytest.raises(
        ValueError, match=r"^row 3 \('how many\?'\): the reference answer .* cannot be judged"
    ):
        await check_references(tasks)


async def test_a_task_without_a_reference_is_named():
    with pytest.raises(JudgeFault, match=r"environment 'fake', task .* has no 'answer'"):
        await score(replace(answering("5"), task=Task("fake", {})), [mathematics], {}, seconds=30)


async def test_a_tiny_reference_can_be_answered():
    assert await judged(0.00001, "0.00001") == 1.0
    assert await exact(Task("x", {"answer": 0.00001}), answering("0.00001")) == {"exact": 1.0}


async def test_well_formed_is_the_share_of_turns_without_a_bad_call():
    turns = (turn(), turn(malformed=True), turn(bad_calls=2), turn())
    assert await well_formed(TASK, trajectory(turns=turns)) == {"well_formed": 0.5}
    assert await well_formed(TASK, trajectory(turns=())) == {"well_formed": 0.0}


async def test_the_order_of_rewards_does_not_change_their_sum():
    parts = {"a": 0.1, "b": 0.2, "c": 0.3}
    orders = (parts, dict(reversed(parts.items())))
    found = [await score(trajectory(env_rewards=p), [], {}, seconds=1) for p in orders]
    assert found[0].reward == found[1].reward == 0.6
    assert sum(orders[0].values()) != sum(orders[1].values())


async def test_a_reward_is_the_weighted_sum_of_evidence_and_judges():
    found = await score(answering("42"), [exact, style], {"style": 0.1, "exact": 2.0}, seconds=1)
    assert found.rewards == {"solved": 1.0, "exact": 1.0, "style": 0.5}
    assert found.reward == pytest.approx(1.0 + 2.0 + 0.05)


async def test_numbers_of_numpy_are_rewards_as_plain_floats():
    found = await score(trajectory(), [foreign], {"depth": 0.25}, seconds=1)
    assert found.rewards == {"solved": 1.0, "style": 0.5, "depth": 2.0}
    assert {(type(k), type(v)) for k, v in found.rewards.items()} == {(str, float)}
    assert found.reward == 2.0
    found.as_json()


async def test_a_sum_that_is_not_finite_is_a_fault():
    with pytest.raises(JudgeFault, match=r"the weighted sum of the rewards .* is not finite"):
        await score(trajectory(), [style], {"style": 1e308, "solved": 1.7e308}, seconds=1)


async def test_a_reward_beyond_what_a_learner_can_add_up_is_a_fault():
    with pytest.raises(JudgeFault, match=r"is 1e\+200, and rewards are within -1e\+15 and 1e\+15"):
        await score(trajectory("t", env_rewards={"size": 1e200}), [], {}, seconds=1)
    scored = await score(trajectory("t", env_rewards={"size": 1e12}), [], {}, seconds=1)
    assert scored.reward == 1e12


async def test_a_judge_that_will_not_be_cancelled_is_left_to_itself(monkeypatch):
    monkeypatch.setattr("reward.score.LAST_SECONDS", 0.1)
    free = asyncio.Event()

    async def stubborn(task, trajectory):
        while not free.is_set():
            with suppress(asyncio.CancelledError):
                await free.wait()
        return {}

    with pytest.raises(JudgeFault, match=r"judge stubborn: no answer within 0\.1 s"):
        await asyncio.wait_for(score(trajectory(), [stubborn], {}, seconds=0.1), 5)
    free.set()
    await asyncio.sleep(0)


def test_a_judge_that_exits_in_a_task_of_its_own_is_a_fault():
    async def inner():
        raise SystemExit(2)

    async def gathers(task, trajectory):
        await asyncio.gather(inner(), asyncio.sleep(5))
        return {}

    try:
        asyncio.run(score(trajectory(), [gathers], {}, seconds=5))
    except JudgeFault as fault:
        assert "judge gathers: PluginExit: SystemExit: 2" in str(fault)
    except SystemExit:
        pytest.fail("the event loop has ended")


async def solved(task, trajectory):
    return {"solved": 0.0}


@pytest.mark.parametrize(("judges", "name"), [([solved], "solved"), ([style, style], "style")])
async def test_a_reward_that_is_given_already_is_a_fault_and_is_not_replaced(judges, name):
    with pytest.raises(JudgeFault, match=f"its reward '{name}' is given already"):
        await score(trajectory(), judges, {}, seconds=1)


async def test_a_trajectory_that_nothing_rewards_is_a_fault_and_no_reward_of_0():
    with pytest.raises(JudgeFault, match="gives no reward of its own, and no judge does"):
        await score(trajectory(env_rewards={}), [], {}, seconds=1)


async def test_who_is_cancelled_while_a_judge_judges_stays_cancelled():
    judging = asyncio.create_task(score(trajectory(), [slow], {}, seconds=9))
    await asyncio.sleep(0)
    judging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await judging


async def test_a_trajectory_that_a_fault_ended_is_not_judged():
    found = await score(trajectory(stop="env_fault"), [broken], {}, seconds=1)
    assert (found.rewards, found.reward) == ({}, 0.0)


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        (broken, "judge broken: RuntimeError: the judge is ill"),
        (slow, "judge slow: no answer within 0.1 s"),
        (late, "judge late: TimeoutError: the far end was slow"),
        (undecided, "judge undecided: "),
        (exits, "judge exits: SystemExit: 2"),
        (interrupts, "judge interrupts: KeyboardInterrupt"),
        (leaves, "judge leaves: GeneratorExit"),
        (cancels, "judge cancels: it raised CancelledError"),
        (undecodable, r"judge undecodable: ValueError: no file caf\udce9"),
        (silent, "judge silent: TypeError: it has to return named rewards, not None"),
        (numbered, "judge numbered: TypeError: a reward's name has to be text, not 1"),
        (infinite, "judge infinite: TypeError: reward 'style' has to be a finite number, not np"),
    ],
)
async def test_a_judge_that_fails_is_a_fault_and_no_reward(judge, sentence):
    start = time.monotonic()
    with pytest.raises(JudgeFault) as caught:
        await score(trajectory(), [judge], {}, seconds=0.1)
    assert str(caught.value).startswith(sentence)
    assert time.monotonic() - start < 3


def test_a_failing_judges_traceback_is_kept():
    with pytest.raises(JudgeFault) as caught:
        asyncio.run(score(trajectory(), [broken], {}, seconds=1))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_judges_are_found_by_entry_point_or_as_module_and_function():
    assert find_judge("exact") is exact
    assert find_judge("reward.format:well_formed") is well_formed


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("exacd", "judge 'exacd' does not exist; installed are exact, mathematics, well_formed"),
        ("reward.answer:missing", "cannot be imported"),
        ("no_such_module:f", "cannot be imported"),
        (f"{__name__}:NOT_A_JUDGE", "NOT_A_JUDGE"),
        ("math:isfinite", "judge 'math:isfinite' is not async"),
    ],
)
def test_a_judge_that_cannot_be_found_is_one_sentence(name, sentence):
    with pytest.raises(UnknownJudge) as caught:
        find_judge(name)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plugin_that_fails_to_import_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken_judges.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownJudge, match="'broken_judges:style' cannot be imported"):
        find_judge("broken_judges:style")
