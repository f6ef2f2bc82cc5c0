"""What clients of all kinds send the gateway beside a plain conversation, and what they read of answers."""

import json

import anthropic
import openai
import pytest
from fakes import END
from test_gateway import ASKED, CALL, PARAMETERS, TOOL, Served, audit

from envs.message import ToolCall, ToolSchema
from rollout.gateway import responses
from rollout.gateway.talk import typed

pytestmark = pytest.mark.process

THOUGHT = "<longcat_think>so</longcat_think>"
CALLS = CALL + CALL.replace("multiply", "add")
ADD = {"type": "function", "function": {**TOOL["function"], "name": "add"}}
FUNCTION = {"type": "function", "name": "multiply", "parameters": PARAMETERS, "strict": False}


async def messages(served, said=ASKED, **more):
    asked = {"model": "policy", "max_tokens": 64, "messages": said}
    return await served.anthropic.messages.create(**asked, **more)


async def test_anthropics_clients_read_which_text_ended_the_answer(renderer):
    async with Served(renderer, ["4 2 1"] * 2 + ["42" + END]) as served:
        whole = await messages(served, stop_sequences=["9", "2"])
        assert (whole.content[0].text.strip(), whole.stop_reason) == ("4", "stop_sequence")
        assert whole.stop_sequence == "2"
        asked = {"model": "policy", "max_tokens": 64, "stop_sequences": ["2"]}
        said = [{"role": "user", "content": "again"}]
        async with served.anthropic.messages.stream(messages=said, **asked) as stream:
            last = await stream.get_final_message()
        assert (last.stop_reason, last.stop_sequence) == ("stop_sequence", "2")
        other = await messages(served, [{"role": "user", "content": "more"}], stop_sequences=["9"])
        assert (other.stop_reason, other.stop_sequence) == ("end_turn", None)
        audit(served)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_results_of_parallel_calls_are_read_in_the_order_of_the_calls(renderer, api):
    """Templates write results without ids; a client that works in parallel sends them as they come."""
    async with Served(renderer, [CALLS + END, "ok" + END]) as served:
        if api == "chat":
            first = (await served.chat(ASKED, tools=[TOOL, ADD])).message
            results = [
                {"role": "tool", "tool_call_id": call.id, "content": call.function.name}
                for call in reversed(first.tool_calls)
            ]
            await served.chat([*ASKED, first.model_dump(), *results], tools=[TOOL, ADD])
        elif api == "responses":
            tools = [FUNCTION, {**FUNCTION, "name": "add"}]
            asked = {"model": "policy", "tools": tools}
            first = await served.openai.responses.create(input=ASKED, **asked)
            results = [
                {"type": "function_call_output", "call_id": call.call_id, "output": call.name}
                for call in reversed(first.output)
            ]
            said = [*ASKED, *(call.model_dump() for call in first.output), *results]
            await served.openai.responses.create(input=said, **asked)
        else:
            tools = [{"name": name, "input_schema": PARAMETERS} for name in ("multiply", "add")]
            first = await messages(served, tools=tools)
            results = [
                {"type": "tool_result", "tool_use_id": use.id, "content": use.name}
                for use in reversed(first.content)
            ]
            said = [{"role": "assistant", "content": first.content}]
            await messages(
                served, [*ASKED, *said, {"role": "user", "content": results}], tools=tools
            )
        read = served.talk.turns[0].observations
        assert [(m.name, m.content) for m in read] == [("multiply", "multiply"), ("add", "add")]
        assert served.talk.branches == []
        audit(served)


@pytest.mark.parametrize(
    ("api", "given", "named"),
    [
        ("chat", {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ("chat", {"guided_json": {"type": "object"}}, "guided_json"),
        ("chat", {"continue_final_message": True}, "continue_final_message"),
        ("chat", {"min_tokens": 5}, "min_tokens"),
        ("responses", {"text": {"format": {"type": "json_object"}}}, "text.format"),
        ("messages", {"tool_choice": {"type": "any"}}, "tool_choice"),
        (
            "messages",
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            "disable_parallel_tool_use",
        ),
        ("messages", {"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
    ],
)
async def test_what_asks_for_another_prompt_or_distribution_is_refused_by_name(
    renderer, api, given, named
):
    async with Served(renderer, []) as served:
        with pytest.raises(Exception, match=f"{named}.*not supported") as refused:
            if api == "chat":
                await served.chat(ASKED, extra_body=given)
            elif api == "responses":
                await served.openai.responses.create(model="policy", input=ASKED, extra_body=given)
            else:
                await messages(served, extra_body=given)
        assert refused.value.status_code == 400 and served.engine.requests == []


async def test_what_a_run_makes_nothing_of_is_answered_and_noted(renderer):
    async with Served(renderer, ["1" + END, "2" + END, "3" + END]) as served:
        await served.chat(ASKED, reasoning_effort="low", extra_body={"prompt_cache_retention": 1})
        await served.openai.responses.create(
            model="policy", input="again", text={"verbosity": "low"}, store=False
        )
        said = [{"role": "user", "content": "more"}]
        await messages(served, said, extra_body={"output_config": {"effort": "low"}, "x" * 99: 1})
        assert served.talk.unknown == {"prompt_cache_retention", "x" * 60}


async def test_thoughts_of_responses_are_streamed_kept_and_cut_answers_are_incomplete(renderer):
    async with Served(renderer, [THOUGHT + "4 2" + END, "4 2"]) as served:
        asked = {"model": "policy"}
        async with served.openai.responses.stream(input="6 times 7 ?", **asked) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        thought = "".join(e.delta for e in events if e.type == "response.reasoning_text.delta")
        assert thought == "so" == final.output[0].content[0].text
        assert [e.sequence_number for e in events] == list(range(len(events)))
        added = [e.item for e in events if e.type == "response.output_item.added"]
        assert [item.type for item in added] == ["reasoning", "message"]
        assert not added[0].content
        cut = await served.openai.responses.create(input="again", **asked)
        assert (cut.status, cut.output[-1].status) == ("incomplete", "incomplete")
        said = [{"role": "user", "content": "x"}, *(o.model_dump() for o in final.output)]
        read = responses.read({"input": said}, "").messages[1]
        assert (read.reasoning, read.content.strip()) == ("so", "4 2")


async def test_a_history_whose_whole_numbers_were_written_anew_goes_on(renderer):
    """JavaScript writes 2.0 as 2."""
    call = '<longcat_tool_call>{"name": "multiply", "arguments": {"a": 2.0, "b": [1e2]}}'
    async with Served(renderer, [f"{call}</longcat_tool_call>{END}", "42" + END]) as served:
        first = (await served.chat(ASKED, tools=[TOOL])).message
        assert json.loads(first.tool_calls[0].function.arguments) == {"a": 2.0, "b": [100.0]}
        echo = first.model_dump()
        echo["tool_calls"][0]["function"]["arguments"] = '{"b": [100], "a": 2}'
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "42"}
        await served.chat([*ASKED, echo, result], tools=[TOOL])
        assert served.talk.branches == []
        audit(served)


async def test_a_call_of_a_client_that_has_no_tools_is_text(renderer):
    async with Served(renderer, [THOUGHT + "so" + CALL + END, "42" + END]) as served:
        said = (await served.chat(ASKED)).message
        assert said.tool_calls is None and said.content == "so" + CALL
        await served.chat([*ASKED, said.model_dump(), {"role": "user", "content": "and ?"}])
        assert served.talk.branches == [] and served.talk.turns[0].calls == ()
        audit(served)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "[" * 200 + "]" * 200])
async def test_no_answer_holds_a_number_that_is_none_of_jsons(renderer, number):
    call = f'<longcat_tool_call>{{"name": "multiply", "arguments": {{"a": {number}}}}}'
    async with Served(renderer, [f"{call}</longcat_tool_call>{END}"]) as served:
        said = await served.chat(ASKED, tools=[TOOL])
        assert said.message.tool_calls is None and number in said.message.content
        assert served.talk.turns[0].malformed


async def test_a_call_of_a_client_that_nests_too_deeply_is_its_own_error(renderer):
    async with Served(renderer, []) as served:
        arguments = '{"a": ' + "[" * 500 + "]" * 500 + "}"
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        with pytest.raises(openai.BadRequestError, match="nest"):
            await served.chat([*ASKED, {"role": "assistant", "tool_calls": [call]}])


async def test_characters_of_a_clients_calls_count_before_they_are_made_into_tokens(renderer):
    async with Served(renderer, []) as served:
        arguments = json.dumps({"a": "x" * 100_000})
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        with pytest.raises(openai.BadRequestError, match="more characters"):
            await served.chat([*ASKED, {"role": "assistant", "tool_calls": [call]}])


async def test_an_error_of_a_tool_without_a_word_is_none_the_less_one(renderer):
    async with Served(renderer, [CALL + END, "42" + END]) as served:
        tools = [{"name": "multiply", "input_schema": PARAMETERS}]
        first = await messages(served, tools=tools)
        result = {"type": "tool_result", "tool_use_id": first.content[0].id, "is_error": True}
        said = [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        await messages(served, [*ASKED, *said], tools=tools)
        assert [m.content for m in served.talk.turns[0].observations] == ["error"]


async def test_anthropics_clients_count_tokens_before_they_ask(renderer):
    async with Served(renderer, ["42" + END]) as served:
        asked = {"model": "policy", "messages": ASKED, "system": "be brief"}
        counted = await served.anthropic.messages.count_tokens(**asked)
        answer = await messages(served, system="be brief")
        assert counted.input_tokens == answer.usage.input_tokens
        assert len(served.engine.requests) == len(served.talk.turns) == 1
        with pytest.raises(anthropic.BadRequestError, match="more characters"):
            said = [{"role": "user", "content": "x" * 100_000}]
            await served.anthropic.messages.count_tokens(model="policy", messages=said)
        assert served.talk.refused == ""


async def test_a_secret_is_found_in_either_header(renderer):
    async with Served(renderer, ["42" + END]) as served:
        headers = {"Authorization": "Bearer another's", "x-api-key": served.access.key}
        assert (await served.chat(ASKED, extra_headers=headers)).message.content == "42"


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "2", 2),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        ({"type": ["number", "null"]}, "2.5", 2.5),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "2", "2"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
        ({"type": "string"}, "null", "null"),
        ({"$ref": "#/$defs/Point"}, '{"x": 1}', {"x": 1}),
        ({"type": "integer"}, "true", "true"),
        ({"type": ["boolean", "integer"]}, "true", True),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "1e999", "1e999"),
        ({"oneOf": 3}, "2", "2"),
        ({}, "2", "2"),
    ],
)
def test_values_that_a_format_writes_as_text_get_a_type_of_the_schema(schema, text, value):
    root = {"properties": {"a": schema}, "$defs": {"Point": {"type": "object"}}}
    [found] = typed(ToolCall("f", {"a": text}), [ToolSchema("f", "", root)]).values()
    assert found == value and type(found) is type(value)
