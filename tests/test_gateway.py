"""The gateway with a scripted engine: which tokens a request continues, and what its client is answered."""

import asyncio
import json

import aiohttp
import anthropic
import openai
import pytest
import uvloop
from fakes import END, ScriptedEngine

from rollout.config import EpisodeConfig
from rollout.engine import EngineFault
from rollout.gateway.server import MOST_BYTES, Gateway
from rollout.gateway.talk import Talk

pytestmark = pytest.mark.process

CALL = (
    "<longcat_tool_call>multiply"
    "<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>6</longcat_arg_value>"
    "<longcat_arg_key>b</longcat_arg_key><longcat_arg_value>7</longcat_arg_value>"
    "</longcat_tool_call>"
)
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
}
TOOL = {
    "type": "function",
    "function": {"name": "multiply", "description": "a times b", "parameters": PARAMETERS},
}
ASKED = [{"role": "user", "content": "6 times 7 ?"}]


class Served:
    """A talk behind a real server, and the clients of both APIs."""

    def __init__(self, renderer, script, **config) -> None:
        limits = {"max_turns": 50, "max_completion_tokens": 64, "max_tokens": 512}
        self.engine = ScriptedEngine(renderer.tokenizer, script)
        self.gateway = Gateway()
        self.segments: list[tuple[str, str]] = []
        self.talk = Talk(
            id="g0.0",
            model="policy",
            renderer=renderer,
            config=EpisodeConfig(**{**limits, **config}),
            generate=self.engine.generate,
            sampling=None,
            branched=lambda new, parent: self.segments.append((new, parent)),
        )

    async def __aenter__(self) -> "Served":
        self.access = await self.gateway.open(self.talk)
        url, key = self.access.url, self.access.key
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        self.anthropic = anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)
        return self

    async def __aexit__(self, *_) -> None:
        await self.openai.close()
        await self.anthropic.close()
        await self.gateway.shut(self.talk)
        await self.gateway.stop()

    async def chat(self, messages, **more):
        made = await self.openai.chat.completions.create(model="policy", messages=messages, **more)
        return made.choices[0]


def audit(served: Served) -> None:
    """Every token that is trained on is the engine's, after the prompt that it was asked with."""
    turns, _ = served.talk.segments()
    written = sorted(t.completion_ids for t in turns)
    played = len(served.engine.requests)
    assert len(turns) == played
    prompts = set()
    context: tuple[int, ...] = ()
    segment = -1
    for turn in turns:
        context = () if turn.segment != segment else context
        segment = turn.segment
        context += turn.prompt_ids
        prompts.add(context)
        context += turn.completion_ids
    assert prompts == {r.prompt_ids for r in served.engine.requests}
    assert written


async def test_a_conversation_continues_the_ids_that_the_engine_wrote(renderer):
    async with Served(renderer, [CALL + END, "42" + END, "42" + END]) as served:
        first = await served.chat(ASKED, tools=[TOOL])
        assert first.finish_reason == "tool_calls"
        [call] = first.message.tool_calls
        assert json.loads(call.function.arguments) == {"a": 6, "b": 7}
        echo = first.message.model_dump(exclude_none=True)
        result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
        second = await served.chat([*ASKED, echo, result], tools=[TOOL])
        assert (second.message.content, second.finish_reason) == ("42", "stop")
        one, two = served.engine.requests
        written = tuple(renderer.tokenizer.encode(CALL + END, add_special_tokens=False))
        assert two.prompt_ids[: len(one.prompt_ids) + len(written)] == one.prompt_ids + written
        assert served.talk.branches == [] and served.segments == []
        assert [m.content for m in served.talk.turns[0].observations] == ["42"]
        audit(served)


def test_it_serves_on_the_loop_of_rays_actors(renderer):
    """Servers of uvloop are no `asyncio.Server`."""

    async def play():
        async with Served(renderer, ["42" + END]) as served:
            assert (await served.chat(ASKED)).message.content == "42"

    uvloop.run(play())


@pytest.mark.parametrize("changed", ["text", "system", "tools", "dropped"])
async def test_a_history_that_is_rewritten_is_a_segment_and_the_first_difference_is_recorded(
    renderer, changed
):
    async with Served(renderer, ["41" + END, "42" + END, "43" + END]) as served:
        one = (await served.chat(ASKED)).message.content
        history = [*ASKED, {"role": "assistant", "content": one}, {"role": "user", "content": "no"}]
        await served.chat(history)
        more, where = {}, (2, "user")
        match changed:
            case "text":
                history = [*history[:2], {"role": "user", "content": "really ?"}]
            case "system":
                history, where = (
                    [{"role": "system", "content": "be brief"}, *history],
                    (0, "system"),
                )
            case "tools":
                more, where = {"tools": [TOOL]}, (-1, "tools")
            case _:
                history, where = [{"role": "user", "content": "sum up"}], (0, "user")
        await served.chat(history, **more)
        turns, [branch] = served.talk.segments()
        assert [t.segment for t in turns] == [0, 0, 1]
        assert (branch.segment, branch.parent, branch.message, branch.role) == (1, 0, *where)
        assert served.segments == [("g0.0~1", "g0.0")]
        audit(served)


async def test_a_branch_keeps_the_ids_of_what_it_has_in_common(renderer):
    async with Served(renderer, ["4 1" + END, "x" + END, "y" + END]) as served:
        one = (await served.chat(ASKED)).message.content
        common = [*ASKED, {"role": "assistant", "content": one}]
        for text in ("first", "second"):
            await served.chat([*common, {"role": "user", "content": text}])
        first, second, third = served.engine.requests
        kept = len(first.prompt_ids) + len(served.talk.turns[0].completion_ids)
        assert second.prompt_ids[:kept] == third.prompt_ids[:kept]
        assert third.num_routed == 0 and second.num_routed == kept - 1
        audit(served)


async def test_the_same_request_again_has_the_same_answer_and_is_sampled_once(renderer):
    async with Served(renderer, ["42" + END]) as served:
        answers = await asyncio.gather(*(served.chat(ASKED) for _ in range(5)))
        answers.append(await served.chat(ASKED))
        assert {a.message.content for a in answers} == {"42"}
        assert len(served.engine.requests) == 1 and served.talk.repeats == 5
        audit(served)


async def test_a_client_that_went_away_loses_nothing_and_its_retry_gets_the_answer(renderer):
    held = asyncio.Event()
    async with Served(renderer, ["42" + END]) as served:
        generate = served.talk.generate

        async def slow(request):
            await held.wait()
            return await generate(request)

        served.talk.generate = slow
        with pytest.raises(openai.APITimeoutError):
            await served.chat(ASKED, timeout=0.2)
        held.set()
        assert (await served.chat(ASKED)).message.content == "42"
        assert len(served.engine.requests) == 1


async def test_openai_streams_text_calls_and_counts(renderer):
    async with Served(renderer, ["I think" + CALL + CALL + END]) as served:
        stream = await served.openai.chat.completions.create(
            model="policy",
            messages=ASKED,
            tools=[TOOL],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        calls = [t for c in chunks if c.choices for t in c.choices[0].delta.tool_calls or []]
        assert (text, [t.index for t in calls]) == ("I think", [0, 1])
        assert json.loads(calls[1].function.arguments) == {"a": 6, "b": 7}
        assert chunks[-1].usage.completion_tokens == len(served.talk.turns[0].completion_ids)


async def test_responses_answer_and_stream_and_go_on(renderer):
    tool = {"type": "function", "name": "multiply", "parameters": PARAMETERS, "strict": False}
    async with Served(renderer, [CALL + END, "42" + END]) as served:
        first = await served.openai.responses.create(
            model="policy", input="6 times 7 ?", tools=[tool], instructions="be brief"
        )
        [call] = first.output
        assert json.loads(call.arguments) == {"a": 6, "b": 7}
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "42"}
        given = [
            {"role": "user", "content": "6 times 7 ?"},
            call.model_dump(exclude_none=True),
            result,
        ]
        async with served.openai.responses.stream(
            model="policy", input=given, tools=[tool], instructions="be brief"
        ) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert final.output_text == "42" and kinds[-1] == "response.completed"
        assert served.talk.branches == []
        audit(served)


async def test_anthropic_answers_streams_and_goes_on(renderer):
    tool = {"name": "multiply", "description": "a times b", "input_schema": PARAMETERS}
    async with Served(renderer, ["so" + CALL + CALL + END, "42" + END]) as served:
        asked = {"model": "policy", "max_tokens": 64, "tools": [tool], "system": "be brief"}
        async with served.anthropic.messages.stream(messages=ASKED, **asked) as stream:
            first = await stream.get_final_message()
        assert first.stop_reason == "tool_use"
        text, *uses = first.content
        assert (text.text, [u.input for u in uses]) == ("so", [{"a": 6, "b": 7}] * 2)
        results = [
            {
                "type": "tool_result",
                "tool_use_id": u.id,
                "content": [{"type": "text", "text": "42"}],
            }
            for u in uses
        ]
        history = [
            *ASKED,
            {"role": "assistant", "content": [b.model_dump() for b in first.content]},
            {"role": "user", "content": results},
        ]
        second = await served.anthropic.messages.create(messages=history, **asked)
        assert (second.content[0].text, second.stop_reason) == ("42", "end_turn")
        assert served.talk.branches == []
        audit(served)


async def test_errors_are_the_apis_own(renderer):
    async with Served(renderer, [], max_tokens=40) as served:
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            await served.openai.chat.completions.create(model="gpt-9", messages=ASKED)
        with pytest.raises(anthropic.NotFoundError):
            await served.anthropic.messages.create(model="x", max_tokens=5, messages=ASKED)
        with pytest.raises(openai.BadRequestError) as long:
            await served.chat([{"role": "user", "content": "word " * 100}])
        assert long.value.code == "context_length_exceeded" and served.talk.refused == "max_tokens"
        for beyond in ({"n": 2}, {"logprobs": True}, {"tool_choice": "required", "tools": [TOOL]}):
            with pytest.raises(openai.BadRequestError, match="not supported"):
                await served.chat(ASKED, **beyond)
        with pytest.raises(openai.BadRequestError, match="image_url"):
            picture = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
            await served.chat([{"role": "user", "content": [picture]}])
        with pytest.raises(openai.AuthenticationError):
            await served.openai.with_options(api_key="sk-other").models.list()
        with pytest.raises(anthropic.AuthenticationError):
            other = served.anthropic.with_options(api_key="sk-other")
            await other.messages.create(model="policy", max_tokens=5, messages=ASKED)
        with pytest.raises(openai.NotFoundError):
            await served.openai.embeddings.create(model="policy", input="x")
        assert [m.id async for m in await served.openai.models.list()] == ["policy"]
        assert served.engine.requests == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[1]", 400),
        (b"\xff\xfe", 400),
        (b'{"model": "policy", "messages": ' + b"[" * 100_000, 400),
        (b'{"model": "policy"}', 400),
        (b'{"model": "policy", "messages": []}', 400),
        (b'{"model": "policy", "messages": [{"role": "tool", "content": "x"}]}', 400),
        (b'{"model": "policy", "messages": [{"role": "user", "content": 3}]}', 400),
        (b'{"x": "' + b"y" * MOST_BYTES + b'"}', 413),
    ],
)
async def test_a_bad_body_is_one_sentence_and_the_next_request_is_served(renderer, body, status):
    async with Served(renderer, ["42" + END]) as served, aiohttp.ClientSession() as session:
        url = f"{served.access.url}/v1/chat/completions"
        headers = {"Authorization": f"Bearer {served.access.key}"}
        async with session.post(url, data=body, headers=headers) as got:
            error = (await got.json())["error"]
            assert got.status == status and error["message"] and error["type"]
        assert (await served.chat(ASKED)).message.content == "42"


async def test_an_engine_that_fails_is_an_error_of_the_server_and_ends_the_talk(renderer):
    async with Served(renderer, [EngineFault("engine-0 died")]) as served:
        with pytest.raises(openai.InternalServerError, match="engine-0 died"):
            await served.chat(ASKED)
        assert served.talk.failed.is_set()
        with pytest.raises(openai.InternalServerError):
            await served.chat([{"role": "user", "content": "again"}])
        assert served.talk.turns == []


async def test_turns_that_are_used_up_are_an_error_that_no_client_retries(renderer):
    async with Served(renderer, ["1" + END, "2" + END], max_turns=1) as served:
        await served.chat(ASKED)
        with pytest.raises(openai.BadRequestError, match="max_turns") as refused:
            await served.chat([{"role": "user", "content": "again"}])
        assert refused.value.code == "turn_limit_exceeded" and served.talk.refused == "max_turns"


async def test_a_stop_text_and_a_limit_of_the_client_hold(renderer):
    async with Served(renderer, ["a b c", "a b c d e"]) as served:
        cut = await served.chat(ASKED, stop=["b"])
        assert (cut.message.content.strip(), cut.finish_reason) == ("a", "stop")
        await served.chat([{"role": "user", "content": "again"}], max_tokens=7)
        assert served.engine.requests[1].max_tokens == 7
