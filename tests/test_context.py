"""Contexts longer than the window: segments, summaries, what is discarded, and the samples they become."""

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest
from fakes import END, FakeSession, ScriptedEngine, completion, trajectory, turn
from pydantic import ValidationError
from test_episode import ANSWER, CALL, episode

from envs.message import Message
from rl.samples.samples import group_samples
from rollout.config import EpisodeConfig
from rollout.context import SUMMARY_HEADING, Context
from rollout.reading import Written
from rollout.trajectory import ScoredTrajectory
from rollout.trajectory_file import read_trajectory

_SPEC = importlib.util.spec_from_file_location(
    "contexts_benchmark", Path(__file__).parent.parent / "benchmarks/contexts.py"
)
document = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(document)


async def play(renderer, script, **config):
    engine = ScriptedEngine(renderer.tokenizer, script)
    session = FakeSession("6 times 7 ?")
    return await episode(renderer, session, engine, **config).run(), session, engine


def limits_of(renderer, script) -> int:
    """A limit that one turn of the script does not reach and two do."""
    played, _, _ = asyncio.run(play(renderer, script, max_tokens=10**6, max_turns=2))
    return len(played.turns[0].prompt_ids) + len(played.turns[0].completion_ids) + 1


def test_a_full_context_is_summed_up_by_the_policy_and_goes_on_after_the_opening(renderer):
    limit = limits_of(renderer, [CALL, CALL])
    script = [CALL, "it was 42, or " + CALL, ANSWER]
    played, session, engine = asyncio.run(
        play(
            renderer,
            script,
            context="summary",
            context_tokens=limit,
            max_tokens=10**4,
            summary_prompt="sum up",
        )
    )
    asked, summed, answered = played.turns
    assert (played.stop_reason, len(session.calls)) == ("completed", 1), "a summary calls nothing"
    assert [t.begins for t in played.turns] == ["", "", "summary"]
    assert [t.segment for t in played.turns] == [0, 0, 1]
    assert [t.summary for t in played.turns] == [False, True, False]
    assert renderer.text(summed.prompt_ids).endswith("42\n\nsum up<|end|><|assistant|>")
    assert (summed.calls, summed.observations) == ((), ())
    opening = renderer.text(answered.prompt_ids)
    assert f"6 times 7 ?\n\n{SUMMARY_HEADING}\nit was 42, or" in opening
    assert [len(s) for s in played.segments] == [2, 1]
    assert engine.requests[2].prompt_ids == answered.prompt_ids
    assert [r.begins for r in engine.requests] == [False, False, True]
    assert engine.requests[1].prompt_ids == (
        *asked.prompt_ids,
        *asked.completion_ids,
        *summed.prompt_ids,
    )


def test_a_discarded_context_begins_with_the_opening_alone(renderer):
    limit = limits_of(renderer, [CALL, CALL])
    played, _, engine = asyncio.run(
        play(
            renderer,
            [CALL, CALL, ANSWER],
            context="discard",
            context_tokens=limit,
            max_tokens=10**4,
        )
    )
    assert [t.begins for t in played.turns] == ["", "discard", "discard"]
    assert {r.prompt_ids for r in engine.requests} == {played.turns[0].prompt_ids}


class Busy:
    """An engine that sums up where it is asked to, and calls a tool for ever."""

    def __init__(self, renderer):
        self.renderer = renderer

    async def generate(self, request):
        asked = "sum up" in self.renderer.text(request.prompt_ids)[-40:]
        written = "so far" + END if asked else CALL
        return completion(self.renderer.tokenizer.encode(written, add_special_tokens=False))


def test_hybrid_discards_after_more_turns_each_time(renderer):
    limits = {"max_tokens": 10**4, "max_turns": 16, "discard_turns": 2, "summary_prompt": "sum up"}
    limits["context_tokens"] = limits_of(renderer, [CALL, CALL])
    session = FakeSession("6 times 7 ?")
    busy = episode(renderer, session, Busy(renderer), context="hybrid", **limits)
    played = asyncio.run(busy.run())
    begins = [t.begins for t in played.turns]
    discards = [number for number, why in enumerate(begins) if why == "discard"]
    assert "summary" in begins and len(discards) >= 2
    gaps = [b - a for a, b in zip([0, *discards], discards, strict=False)]
    assert gaps == sorted(gaps) and gaps[0] < gaps[-1]
    assert len(session.calls) == sum(not t.summary for t in played.turns)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"context_tokens": 9}, "context_tokens is of a context that is shortened"),
        ({"context": "summary", "context_tokens": 256}, "leaves no room for another turn"),
        ({"context": "hybrid"}, "discard_turns belongs to"),
        ({"context": "discard", "discard_turns": 3}, "discard_turns belongs to"),
        ({"context": "forget"}, "Input should be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        EpisodeConfig(**given)


def test_a_context_is_shortened_at_five_eighths_of_the_window():
    assert EpisodeConfig(context="summary", max_tokens=128_000).context_limit == 80_000


class Forgetful:
    """A renderer whose template drops thoughts when the user speaks; ids are the messages' lengths."""

    def prompt(self, messages, tools):
        return [len(m.content) for m in messages]

    def suffix(self, messages, completion):
        return [len(m.content) for m in messages]

    def forgets(self, messages, thought):
        return thought and any(m.role == "user" for m in messages)


@pytest.mark.parametrize(
    ("thought", "role", "begins"),
    [("hm", "user", "thoughts"), ("", "user", ""), ("hm", "tool", "")],
)
def test_a_segment_begins_where_the_template_drops_a_thought(thought, role, begins):
    context = Context(EpisodeConfig(), Forgetful(), (Message("user", "go"),), ())
    before = context.begin().before([2])
    context.wrote(
        before, (7, 8), Written(thought, "so", thought=bool(thought)), (Message(role, "and then?"),)
    )
    asked = context.next(before)
    after = asked.before(asked.render())
    assert after.begins == begins
    assert (*after.context, *after.prompt) == ((2, 2, 9) if begins else (2, 7, 8, 9))


@pytest.mark.parametrize("context", ["summary", "discard", "hybrid"])
def test_a_document_of_five_windows_is_read_by_an_expert_who_sees_no_more_than_its_context(
    renderer, context
):
    pages, noting = 20, context != "summary"
    config = document.PagesConfig(pages=pages, words=6)
    generate = document.expert(renderer, pages, noting=noting)
    limits = document.limits
    whole = asyncio.run(document.play(renderer, generate, config, limits(10**6, "append")))
    assert whole.env_rewards == {"solved": 1.0} and len(whole.segments) == 1
    window = whole.num_tokens // 5
    cut = asyncio.run(document.play(renderer, generate, config, limits(window, "append")))
    assert (cut.stop_reason, cut.env_rewards) == ("max_tokens", {"solved": 0.0})
    played = asyncio.run(document.play(renderer, generate, config, limits(window, context)))
    assert (played.stop_reason, played.env_rewards) == ("completed", {"solved": 1.0})
    assert len(played.segments) >= 5
    for turns in played.segments:
        assert sum(len(t.prompt_ids) + len(t.completion_ids) for t in turns) <= window


TURNS = (
    turn((1, 2), (3, 4)),
    turn((5,), (6,), summary=True),
    turn((1, 2, 9), (7, 8, 7), begins="summary", segment=1),
)


def test_a_trajectory_without_a_turn_has_no_segment():
    assert trajectory("t0", turns=()).segments == ()


def test_the_advantage_goes_to_all_segments_and_a_group_is_of_trajectories():
    long = ScoredTrajectory(trajectory("t0", turns=TURNS), {"solved": 1.0}, 1.0)
    short = ScoredTrajectory(trajectory("t1"), {"solved": 0.0}, 0.0)
    samples, dropped = group_samples([long, short], "grpo", filter_zero_variance=True)
    assert [s.id for s in samples] == ["t0", "t0~1", "t1"] and not dropped
    assert [set(s.advantages) for s in samples] == [{0.0, 1.0}, {0.0, 1.0}, {0.0, -1.0}]


def test_a_record_keeps_segments_and_older_lines_have_one():
    scored = ScoredTrajectory(trajectory("t0", turns=TURNS), {"solved": 1.0}, 1.0)
    line = scored.as_json()
    assert read_trajectory(line).trajectory.segments == scored.trajectory.segments
    record = json.loads(line)
    assert [sorted({"begins", "summary", "reasoning"} & t.keys()) for t in record["turns"]] == [
        [],
        ["summary"],
        ["begins"],
    ]
