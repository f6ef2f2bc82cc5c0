"""Formats of real checkpoints: found by their templates, and generated calls that come back as they were.

vLLM's parsers take a minute to import: what needs them is `slow`. `benchmarks/formats.py` reads 10,000 texts
per format.
"""

import json
import random
import re

import pytest
from typer.testing import CliRunner
from written_calls import UNQUOTED, WRITERS, generated, tokenizer

from envs.message import ToolCall
from rl.cli import app
from rollout.format import FORMATS, format_of
from rollout.reading import Written, read
from rollout.thought import THOUGHTS
from rollout.tool_format import MalformedCall

CALL = ToolCall("delete", {"path": "/"})
OWN = ("longcat", "hermes", "cohere")
VLLM = sorted(name for name, record in FORMATS.items() if record.parser)
# What a rendered assistant's turn has around a call that has no marks of its own.
TURNS = {
    "llama3_json": "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "llama4_pythonic": "<|header_start|>assistant<|header_end|>\n\n{}<|eot|>",
}


@pytest.fixture(scope="module")
def made():
    return tokenizer()


@pytest.mark.parametrize("name", WRITERS)
def test_a_format_is_found_by_what_a_template_writes(name):
    written = TURNS.get(name, "{}").replace("{}", WRITERS[name]([CALL]))
    assert format_of(written).name == name
    assert format_of("", written).name == name


def test_every_format_has_a_writer_and_is_named_after_itself():
    assert {*WRITERS, "text"} == set(FORMATS)
    assert all(name == record.name for name, record in FORMATS.items())
    assert format_of("<|im_start|>assistant\nso<|im_end|>").name == "text"


def block_reader(seen: list[str]):
    """Takes every block for a call, and notes it."""

    def block(text, tools):
        seen.append(text)
        return (CALL,)

    return block


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "harmony"])
@pytest.mark.parametrize("mark", THOUGHTS)
@pytest.mark.parametrize("closed", [True, False])
def test_no_call_in_a_thought_reaches_a_reader(name, mark, closed):
    seen: list[str] = []
    call = WRITERS[name]([CALL, CALL])
    text = f"{mark}I could {call}" + (f"{THOUGHTS[mark]}so" if closed else "")
    found = read(text, (), FORMATS[name], block=block_reader(seen))
    assert (seen, found.calls) == ([], ())
    assert found.answer == ("so" if closed else "")
    assert found.reasoning == f"I could {call}".strip()


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "harmony"])
def test_a_text_without_calls_is_the_answer(name):
    found = read(" It is {4}, [so]: a < b. ", (), FORMATS[name], block=block_reader([]))
    assert found == Written("", "It is {4}, [so]: a < b.")


@pytest.mark.parametrize("name", [name for name in VLLM if FORMATS[name].closes])
def test_a_call_that_is_cut_off_reaches_no_reader(name):
    text = WRITERS[name]([CALL])
    seen: list[str] = []
    found = read(text[:-1], (), FORMATS[name], block=block_reader(seen))
    assert (seen, found.calls) == ([], ())
    assert FORMATS[name].closes in found.malformed


def test_a_block_without_a_call_is_malformed():
    def nothing(text, tools):
        raise MalformedCall("no")

    text = WRITERS["qwen3_coder"]([CALL])
    assert read(text, (), FORMATS["qwen3_coder"], block=nothing).malformed == "no"
    assert read(text, (), FORMATS["qwen3_coder"], block=lambda text, tools: ()).malformed


@pytest.mark.parametrize("name", OWN)
def test_generated_calls_come_back_as_they_were(name):
    rng = random.Random(name)
    for _ in range(300):
        calls, tools = generated(rng, name)
        found = read(WRITERS[name](calls), tools, FORMATS[name])
        assert (found.malformed, found.calls) == ("", tuple(calls))


@pytest.mark.slow
@pytest.mark.parametrize("name", VLLM)
def test_generated_calls_come_back_through_vllms_parsers(name, made):
    from rollout.vllm_parsers import reader_of

    reader = reader_of(FORMATS[name], made)
    rng = random.Random(name)
    for _ in range(60):
        calls, tools = generated(rng, name)
        found = reader(WRITERS[name](calls), tools, False)
        assert (found.malformed, found.calls) == ("", tuple(calls))


@pytest.mark.slow
def test_harmonys_channels_are_reasoning_answer_and_calls(made):
    from rollout.vllm_parsers import reader_of

    reader = reader_of(FORMATS["harmony"], made)
    call = WRITERS["harmony"]([CALL])
    thought = (
        f"<|channel|>analysis<|message|>hm, {re.sub('<[^>]*>', '', call)}<|end|><|start|>assistant"
    )
    assert reader(thought + "<|channel|>final<|message|>so", (), False).answer == "so"
    assert reader(thought + call, (), False).calls == (CALL,)
    cut = reader(f"<|channel|>analysis<|message|>hm, {re.sub('<[^>]*>', '', call)}", (), False)
    assert (cut.answer, cut.calls) == ("", ()) and cut.reasoning.startswith("hm")


def test_what_a_format_without_quotes_cannot_write_is_known():
    assert set(UNQUOTED) <= set(FORMATS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama3_json", '{"name": "f", "parameters": {"a": {"name": "delete", "parameters": {}}'),
        (
            "llama3_json",
            '{"name": "f", "parameters": {}}; and {"name": "delete", "parameters": {}}',
        ),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": {"name": "delete", "arguments": {}}'),
        ("mistral", "[TOOL_CALLS]f[ARGS]"),
    ],
)
def test_json_that_does_not_end_is_malformed_and_no_part_of_it_is_a_call(name, text):
    seen: list[str] = []
    found = read(text, (), FORMATS[name], block=block_reader(seen))
    assert (seen, found.calls) == ([], ()) and found.malformed


def test_the_command_says_how_a_checkpoint_writes(checkpoint):
    said = CliRunner().invoke(app, ["model", "formats", str(checkpoint), "--json"])
    found = json.loads(said.output)
    assert found["format"].startswith("longcat: ") and "<longcat_tool_call>" in found["a call"]
    assert found["earlier thoughts"] == "all of them stay"
    assert found["played"] == "turn by turn with user and system and tool"
    assert "17 grams" in found["a result"] and "<|end|>" in found["a turn ends with"]


def test_the_command_lists_all_formats_and_refuses_what_is_no_checkpoint(tmp_path):
    listed = CliRunner().invoke(app, ["model", "formats", "--json"])
    assert set(json.loads(listed.output)) == set(FORMATS)
    for folder, said in ((tmp_path, "has no tokenizer"), (tmp_path / "no", "does not exist")):
        wrong = CliRunner().invoke(app, ["model", "formats", str(folder)])
        assert wrong.exit_code == 2 and said in wrong.output
