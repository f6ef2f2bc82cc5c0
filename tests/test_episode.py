"""`run_episode` with a scripted engine: every way an episode ends, and what its record says then."""

import asyncio
import json
import threading
import time
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from fakes import END, TASK, FakeSession, ScriptedEngine, completion

from envs.builtin.calculator import Calculator
from envs.env import Task
from envs.message import Message, ToolCall
from envs.session import Deadlines, EnvFault, EnvSession
from reward.score import score
from rollout.config import EpisodeConfig
from rollout.engine import Completion, EngineFault, Sampling, VersionSpan
from rollout.episode import Episode, HostFault, bounded
from rollout.trajectory import JUDGED, ScoredTrajectory
from rollout.trajectory_file import read_trajectory

CALL = (
    "<longcat_tool_call>multiply"
    "<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>6</longcat_arg_value>"
    "<longcat_arg_key>b</longcat_arg_key><longcat_arg_value>7</longcat_arg_value>"
    "</longcat_tool_call>" + END
)
ANSWER = "42" + END


def episode(renderer, session, engine, **config) -> Episode:
    limits = {"max_turns": 4, "max_completion_tokens": 32, "max_tokens": 256, "max_seconds": 20}
    return Episode(
        id="g0.0",
        group="g0",
        env="fake",
        task=TASK,
        session=session,
        generate=engine.generate,
        renderer=renderer,
        config=EpisodeConfig(**{**limits, **config}),
    )


async def play(renderer, script, fail=None, opening="6 times 7 ?", **config):
    """The trajectory, the session and the engine of one scripted episode."""
    session = FakeSession(opening, fail)
    engine = ScriptedEngine(renderer.tokenizer, script)
    return await episode(renderer, session, engine, **config).run(), session, engine


async def test_an_episode_with_a_tool_call_and_an_answer_is_completed(renderer):
    trajectory, session, _ = await play(renderer, [CALL, ANSWER])
    assert (trajectory.stop_reason, trajectory.env_rewards) == ("completed", {"solved": 1.0})
    assert trajectory.judged and not trajectory.fault
    assert trajectory.opening == (Message("user", "6 times 7 ?"),)
    first, second = trajectory.turns
    assert first.calls == (ToolCall("multiply", {"a": "6", "b": "7"}),)
    assert first.observations == (Message("tool", "42", name="multiply"),)
    assert (second.text, second.calls) == ("42", ())
    assert session.acts == ["open", "step", "step", "score", "close"]


async def test_the_environments_notes_end_on_the_trajectory_and_its_line(renderer):
    session = FakeSession(notes={"sandbox": "bubblewrap"})
    engine = ScriptedEngine(renderer.tokenizer, [CALL, ANSWER])
    played = await episode(renderer, session, engine).run()
    assert played.notes == {"sandbox": "bubblewrap"}
    line = ScoredTrajectory(played, {"solved": 1.0}, 1.0).as_json()
    assert json.loads(line)["notes"] == {"sandbox": "bubblewrap"}


async def test_a_turns_rewards_are_those_of_the_turn_that_the_environment_saw(renderer):
    """The environment never sees the call that cannot be read, so its second turn is the third."""
    parts = {0: {"step": 0.25}, 1: {"step": 0.5, "solved": 1.0}}
    broken = "<longcat_tool_call>multiply" + END
    engine = ScriptedEngine(renderer.tokenizer, [CALL, broken, ANSWER])
    played = await episode(renderer, FakeSession(by_turn=parts), engine).run()
    assert [turn.rewards for turn in played.turns] == [parts[0], {}, parts[1]]
    scored = await score(played, [], {"step": 2.0}, seconds=1.0)
    assert scored.turn_rewards == (0.5, 0.0, 2.0)
    assert read_trajectory(scored.as_json()) == scored
    assert '"rewards":{}' not in scored.as_json()


async def test_a_turn_asks_for_routing_from_the_last_token_of_the_turn_before(renderer):
    trajectory, _, engine = await play(renderer, [CALL, ANSWER])
    first = trajectory.turns[0]
    before = len(first.prompt_ids) + len(first.completion_ids)
    assert [request.num_routed for request in engine.requests] == [0, before - 1]


async def test_a_real_environment_solves_its_task_through_a_session(renderer):
    task = Task("calculator", {"op": "multiply", "word": "times", "a": 6, "b": 7})
    session = EnvSession(Calculator(Calculator.config_type()), Deadlines())
    e = episode(renderer, session, ScriptedEngine(renderer.tokenizer, [CALL, ANSWER]))
    e.task = task
    trajectory = await e.run()
    assert (trajectory.stop_reason, trajectory.env_rewards) == ("completed", {"solved": 1.0})


async def test_a_turn_ends_at_a_text_that_ends_it_and_what_was_written_beyond_is_dropped(renderer):
    session, sampling = FakeSession("6 times 7 ?"), Sampling(1.0, stop=("nothing", "]]"))
    engine = ScriptedEngine(renderer.tokenizer, ["so [[42]] and more" + END])
    played = await replace(episode(renderer, session, engine), sampling=sampling).run()
    [turn] = played.turns
    assert (turn.text, turn.finish_reason) == ("so [[42]]", "stop")
    assert session.replies == ["so [[42]]"]
    whole = renderer.tokenizer.encode("so [[42]] and more", add_special_tokens=False)
    assert turn.completion_ids == tuple(whole[: len(turn.completion_ids)])
    assert len(turn.rollout_logprobs) == len(turn.completion_ids)
    assert turn.versions[-1].end == len(turn.completion_ids)


def test_a_completion_that_is_cut_keeps_its_versions_and_routing():
    routing = np.zeros((3 + 5 - 1, 2, 2), dtype=np.uint8)
    spans = (VersionSpan(3, 0, 2), VersionSpan(4, 2, 4), VersionSpan(5, 4, 5))
    whole = Completion((1, 2, 3, 4, 5), (0.0,) * 5, spans, "length", routing=routing)
    cut = whole.cut(3)
    assert (cut.token_ids, cut.logprobs, cut.finish_reason) == ((1, 2, 3), (0.0,) * 3, "stop")
    assert cut.versions == (VersionSpan(3, 0, 2), VersionSpan(4, 2, 3))
    assert cut.routing is not None and len(cut.routing) == 3 + 3 - 1
    assert whole.cut(5) == replace(whole, finish_reason="stop")


async def test_plain_text_that_is_no_tool_call_is_the_answer(renderer):
    trajectory, session, _ = await play(renderer, ["I cannot < do > {that}" + END])
    assert trajectory.stop_reason == "completed"
    assert session.replies == ["I cannot < do > {that}"]


async def test_a_malformed_call_goes_back_as_an_error_and_the_episode_goes_on(renderer):
    trajectory, session, engine = await play(
        renderer, ["<longcat_tool_call>multiply" + END, CALL, ANSWER]
    )
    assert trajectory.stop_reason == "completed"
    first = trajectory.turns[0]
    assert first.malformed and not first.calls
    assert first.observations[0].role == "tool"
    assert first.observations[0].content.startswith("error: ")
    assert "error: a tool call has to end" in renderer.text(engine.requests[1].prompt_ids)
    assert [t.malformed for t in trajectory.turns] == [True, False, False]
    assert session.acts.count("step") == 2, "the environment never sees the malformed call"


async def test_a_thought_is_kept_apart_and_neither_called_nor_answered(renderer):
    thought = f"<think>{CALL.removesuffix(END)} or 7?</think>"
    trajectory, session, _ = await play(renderer, [thought + CALL, thought + "42" + END])
    assert [len(turn.calls) for turn in trajectory.turns] == [1, 0]
    assert (session.replies, trajectory.turns[1].text) == (["42"], "42")
    assert all(turn.thought.endswith("</longcat_tool_call> or 7?") for turn in trajectory.turns)
    line = ScoredTrajectory(trajectory, {}, 0.0).as_json()
    assert read_trajectory(line).trajectory.turns[1].thought == trajectory.turns[1].thought


@pytest.mark.parametrize("said", ["<think>Is it 42?", "<think>Is it 42? <longcat_tool_call>"])
async def test_a_thought_that_does_not_end_is_no_answer(renderer, said):
    trajectory, session, _ = await play(renderer, [said + END])
    assert (session.replies, trajectory.turns[0].text) == ([""], "")
    assert trajectory.turns[0].thought.startswith("Is it 42?")


async def test_a_malformed_calls_text_is_without_the_thought(renderer):
    written = "<think>so</think><longcat_tool_call>multiply" + END
    trajectory, _, _ = await play(renderer, [written, ANSWER])
    first = trajectory.turns[0]
    assert (first.malformed, first.thought) == (True, "so")
    assert first.text == "<longcat_tool_call>multiply"


async def test_turns_used_up_is_max_turns_and_is_judged(renderer):
    trajectory, session, _ = await play(renderer, [CALL] * 3, max_turns=3)
    assert (trajectory.stop_reason, len(trajectory.turns)) == ("max_turns", 3)
    assert trajectory.judged and trajectory.env_rewards
    assert session.acts[-2:] == ["score", "close"]


async def test_a_completion_cut_off_by_its_limit_is_max_tokens(renderer):
    trajectory, session, _ = await play(renderer, ["no end to this"])
    assert (trajectory.stop_reason, len(trajectory.turns)) == ("max_tokens", 1)
    assert trajectory.turns[0].finish_reason == "length"
    assert session.acts == ["open", "score", "close"], "half a message is no move"


@pytest.mark.parametrize("limit", [24, 60, 90, 200])
async def test_no_trajectory_is_longer_than_its_limit(renderer, limit):
    trajectory, _, engine = await play(renderer, [CALL] * 40, max_tokens=limit, max_turns=40)
    assert trajectory.stop_reason == "max_tokens"
    for request in engine.requests:
        assert 0 < request.max_tokens <= 32
        assert len(request.prompt_ids) + request.max_tokens <= limit


async def test_an_opening_without_room_for_a_single_token_is_no_answer_of_the_policy(renderer):
    trajectory, session, engine = await play(renderer, [ANSWER], max_tokens=3)
    assert (trajectory.stop_reason, trajectory.judged) == ("no_room", False)
    assert "leaves no room in episode.max_tokens (3)" in trajectory.fault
    assert engine.requests == [] and session.acts == ["open", "close"]


async def test_a_trajectory_without_room_for_another_turn_is_max_tokens(renderer):
    longer, _, _ = await play(renderer, [CALL, ANSWER])
    room = longer.num_tokens - len(longer.turns[1].completion_ids)
    trajectory, session, engine = await play(renderer, [CALL, ANSWER], max_tokens=room)
    assert (trajectory.stop_reason, len(trajectory.turns)) == ("max_tokens", 1)
    assert len(engine.requests) == 1 and session.acts[-1] == "close"


FAULT = EnvFault("tool", "environment 'fake', tool: broken", "Traceback: first")


@pytest.mark.parametrize(
    ("script", "fail", "stop", "sentence"),
    [
        ([CALL], {"open": FAULT}, "env_fault", "environment 'fake', tool: broken"),
        ([CALL], {"step": FAULT}, "env_fault", "environment 'fake', tool: broken"),
        ([ANSWER], {"score": FAULT}, "env_fault", "environment 'fake', tool: broken"),
        ([CALL], {"open": HostFault("host died")}, "host_fault", "host died"),
        ([CALL], {"step": HostFault("host died")}, "host_fault", "host died"),
        ([CALL, EngineFault("engine-0 died")], {}, "engine_fault", "engine-0 died"),
        ([completion((5,), finish="abort")], {}, "engine_fault", "engine engine-0 aborted"),
        ([RuntimeError("a bug of ours")], {}, "crash", "RuntimeError: a bug of ours"),
        ([CALL], {"open": KeyError("x")}, "crash", "KeyError: 'x'"),
    ],
)
async def test_each_kind_of_fault_has_its_own_stop_reason(renderer, script, fail, stop, sentence):
    trajectory, session, _ = await play(renderer, script, fail)
    assert (trajectory.stop_reason, trajectory.judged) == (stop, False)
    assert trajectory.fault.startswith(sentence)
    assert trajectory.env_rewards == {}, "a fault is never a reward"
    assert session.acts.count("close") == 1
    if stop == "crash":
        assert "Traceback" in trajectory.trace
    if stop == "env_fault":
        assert trajectory.trace == "Traceback: first"


async def test_turns_played_before_a_fault_are_on_record(renderer):
    trajectory, _, _ = await play(renderer, [CALL, EngineFault("engine-0 died")])
    assert len(trajectory.turns) == 1


@pytest.mark.parametrize(
    ("script", "fail", "phase"),
    [
        ([ScriptedEngine.HANG], {}, "generate"),
        ([CALL], {"open": FakeSession.HANG}, "reset"),
        ([CALL], {"step": FakeSession.HANG}, "tool"),
        ([ANSWER], {"step": FakeSession.HANG}, "reply"),
        ([ANSWER], {"score": FakeSession.HANG}, "score"),
    ],
)
async def test_whatever_hangs_the_episode_ends_in_time_and_says_where(
    renderer, script, fail, phase
):
    start = time.monotonic()
    trajectory, session, _ = await play(renderer, script, fail, max_seconds=0.2)
    assert time.monotonic() - start < 3
    assert (trajectory.stop_reason, trajectory.judged) == ("timeout", False)
    assert trajectory.fault == f"no end within 0.2 s; last phase '{phase}'"
    assert session.acts.count("close") == 1


@pytest.mark.parametrize(
    "error", [EnvFault("close", "cannot close"), HostFault("host died"), RuntimeError("a bug")]
)
async def test_a_failing_close_changes_no_outcome_and_is_on_record(renderer, error):
    trajectory, session, _ = await play(renderer, [CALL, ANSWER], {"close": error})
    assert (trajectory.stop_reason, trajectory.env_rewards) == ("completed", {"solved": 1.0})
    assert session.acts.count("close") == 1
    assert any(p.name.startswith("close failed") for p in trajectory.phases)


async def test_stop_reasons_that_are_judged_are_those_of_the_policys_own_doing():
    assert {"completed", "max_turns", "max_tokens"} == JUDGED


async def test_every_await_stamps_its_phase_in_order(renderer):
    before = time.time()
    trajectory, _, _ = await play(renderer, [CALL, ANSWER])
    names = [p.name for p in trajectory.phases]
    assert names == ["reset", "generate", "tool", "generate", "reply", "score", "close"]
    starts = [p.start for p in trajectory.phases]
    assert starts == sorted(starts) and starts[0] >= before - 1
    assert all(p.seconds >= 0 for p in trajectory.phases)


async def test_while_it_runs_an_episode_says_what_it_waits_for(renderer):
    engine = ScriptedEngine(renderer.tokenizer, [ScriptedEngine.HANG])
    session = FakeSession()
    e = episode(renderer, session, engine)
    running = asyncio.create_task(e.run())
    await engine.asked.wait()
    assert e.clock.current == "generate"
    assert time.time() - e.clock.since < 5
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_cancellation_passes_through_and_still_closes_the_environment(renderer):
    engine = ScriptedEngine(renderer.tokenizer, [CALL, ScriptedEngine.HANG])
    session = FakeSession()
    running = asyncio.create_task(episode(renderer, session, engine).run())
    await engine.asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert session.acts.count("close") == 1


async def test_each_prompt_extends_the_last_by_the_very_tokens_that_were_sampled(renderer):
    """The completion is spelled in single bytes: encoding its text again would give other ids."""
    tokenizer = renderer.tokenizer
    text = "no call but words that are one token"
    spelled = [id for letter in text for id in tokenizer.encode(letter, add_special_tokens=False)]
    assert tokenizer.encode(text, add_special_tokens=False) != spelled
    marks = tokenizer.encode(CALL, add_special_tokens=False)
    odd = completion((*spelled, *marks), v=3)
    trajectory, _, engine = await play(renderer, [odd, CALL, ANSWER])
    context: tuple[int, ...] = ()
    for turn, request in zip(trajectory.turns, engine.requests, strict=True):
        context += turn.prompt_ids
        assert request.prompt_ids == context
        context += turn.completion_ids
    assert trajectory.turns[0].completion_ids == odd.token_ids
    assert trajectory.turns[0].rollout_logprobs == odd.logprobs
    assert trajectory.turns[0].versions == (VersionSpan(3, 0, len(odd.token_ids)),)
    assert trajectory.turns[0].text == text
    assert len(context) == trajectory.num_tokens


async def test_requests_are_unique_and_share_the_session_of_their_trajectory(renderer):
    trajectory, _, engine = await play(renderer, [CALL, CALL, ANSWER])
    assert len({r.id for r in engine.requests}) == 3
    assert {r.session for r in engine.requests} == {trajectory.id}


async def test_the_versions_of_a_trajectory_are_those_of_its_turns_in_order(renderer):
    ids = renderer.tokenizer.encode(CALL, add_special_tokens=False)
    trajectory, _, _ = await play(renderer, [completion(ids, v=4), completion(ids, v=5), ANSWER])
    assert trajectory.versions == (4, 5, 0)


async def test_tool_calls_that_the_environment_refuses_are_counted(renderer):
    task = Task("calculator", {"op": "multiply", "word": "times", "a": 6, "b": 7})
    session = EnvSession(Calculator(Calculator.config_type()), Deadlines())
    unknown = CALL.replace("multiply", "divide")
    e = episode(renderer, session, ScriptedEngine(renderer.tokenizer, [unknown, CALL, ANSWER]))
    e.task = task
    trajectory = await e.run()
    assert [t.bad_calls for t in trajectory.turns] == [1, 0, 0]
    assert trajectory.turns[0].observations[0].content == "error: no tool 'divide'"
    assert trajectory.env_rewards == {"solved": 1.0}


class Flood(FakeSession):
    """Answers each call with far more than there is room for."""

    async def step(self, text, calls):
        result = await super().step(text, calls)
        return replace(result, messages=tuple(replace(m, content=FLOOD) for m in result.messages))


FLOOD = "all the rows of a table, " * 480_000


async def test_a_result_of_megabytes_costs_milliseconds_and_ends_the_trajectory(renderer):
    engine = ScriptedEngine(renderer.tokenizer, [CALL] * 3)
    start = time.perf_counter()
    played = await episode(renderer, Flood(), engine).run()
    assert time.perf_counter() - start < 1
    assert (played.stop_reason, len(played.turns)) == ("max_tokens", 1)
    said = played.turns[0].observations[0].content
    assert len(said) < 10_000 and said.endswith("characters more]")


async def test_an_opening_of_megabytes_is_refused_before_the_tokenizer(renderer):
    session = FakeSession(opening=FLOOD)
    start = time.perf_counter()
    played = await episode(renderer, session, ScriptedEngine(renderer.tokenizer, [])).run()
    assert time.perf_counter() - start < 1
    assert played.stop_reason == "no_room"
    assert "an opening of 12,000," in played.fault


async def test_a_long_text_is_made_into_tokens_beside_the_event_loop(renderer):
    threads: list[str] = []

    class Watched(type(renderer)):
        def _encode(self, text):
            threads.append(threading.current_thread().name)
            return super()._encode(text)

    watched = copy(renderer)
    watched.__class__ = Watched
    session = FakeSession(opening="word " * 5_000)
    e = episode(watched, session, ScriptedEngine(renderer.tokenizer, [ANSWER]), max_tokens=60_000)
    assert (await e.run()).stop_reason == "completed"
    assert threads and threading.main_thread().name not in threads


def test_texts_are_cut_where_all_together_are_too_long():
    messages = [Message("tool", "abcdef"), Message("tool", "ghij"), Message("tool", "")]
    assert [m.content for m in bounded(messages, 8)] == [
        "abcdef",
        "gh\n[2 characters more]",
        "",
    ]
    assert bounded(messages, 10) == tuple(messages)
