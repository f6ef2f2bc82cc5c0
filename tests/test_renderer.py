"""Messages to tokens: turn by turn is the same as all at once, and what was sampled stays as it was."""

import json
import shutil

import pytest
from fakes import END
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer

from envs.message import Message, ToolCall, ToolSchema
from rollout.reading import Written
from rollout.renderer import Renderer
from rollout.template_check import check_template
from trainer.small.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS

ADD = ToolSchema(
    "add", "a plus b", {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
)
CALL = ToolCall("add", {"a": 4, "b": 38})
OPENING = (Message("user", "4 plus 38 ?"),)

# Without the noncharacter by which the renderer cuts texts: one that has it loses it.
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0")
content = st.text(letters, max_size=30).filter(lambda s: not any(t in s for t in SPECIAL_TOKENS))
names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
calls = st.builds(ToolCall, names, st.dictionaries(names, content | st.integers(), max_size=2))
written = st.builds(
    lambda text, made: Message("assistant", text, tuple(made)), content, st.lists(calls, max_size=2)
)
answers = st.lists(
    st.builds(lambda role, text: Message(role, text), st.sampled_from(["tool", "user"]), content),
    min_size=1,
    max_size=3,
)
openings = st.builds(
    lambda system, user: (*system, Message("user", user)),
    st.lists(st.builds(lambda text: Message("system", text), content), max_size=1),
    content,
)


def whole_text(renderer: Renderer, messages, tools) -> str:
    return renderer.tokenizer.apply_chat_template(
        [m.as_chat() for m in messages],
        tools=[t.as_chat() for t in tools] or None,
        add_generation_prompt=True,
        tokenize=False,
    )


def encode(renderer: Renderer, text: str) -> list[int]:
    return renderer.tokenizer.encode(text, add_special_tokens=False)


def written_ids(renderer: Renderer, message: Message) -> list[int]:
    """What a policy that writes this message sends back, taken from the template's whole rendering."""
    before = [Message("user", "?")]
    text = whole_text(renderer, [*before, message], ())
    return encode(
        renderer,
        text.removeprefix(whole_text(renderer, before, ())).removesuffix("<|assistant|>"),
    )


@given(openings, st.lists(st.tuples(written, answers), max_size=4), st.booleans())
def test_built_turn_by_turn_equals_rendered_all_at_once(renderer, opening, turns, with_tools):
    tools = (ADD,) if with_tools else ()
    ids = renderer.prompt(opening, tools)
    messages = list(opening)
    for message, observations in turns:
        completion = written_ids(renderer, message)
        ids += completion
        ids += renderer.suffix(observations, completion)
        messages += [message, *observations]
    assert ids == encode(renderer, whole_text(renderer, messages, tools))


@given(content)
def test_any_content_can_be_read_back_from_the_tokens(renderer, text):
    ids = renderer.prompt([Message("user", text)], ())
    assert renderer.text(ids) == f"<|user|>{text}<|end|><|assistant|>"


@given(
    st.lists(st.sampled_from(["<|end|>", "<|assistant|>", "a", "<longcat_tool_call>", "|>", "<"]))
)
def test_nobody_but_the_template_and_the_policy_writes_special_tokens(renderer, parts):
    """A tool that echoes what it was given cannot end its turn and begin another."""
    text = "".join(parts)
    special = set(renderer.tokenizer.added_tokens_decoder)
    plain = [i for i in renderer.prompt([Message("user", "")], ()) if i in special]
    ids = renderer.prompt([Message("user", text)], ())
    assert [i for i in ids if i in special] == plain
    assert renderer.text(ids) == f"<|user|>{text}<|end|><|assistant|>"
    said = renderer.suffix([Message("tool", text)], [renderer.eos_ids[0]])
    assert [i for i in said if i in special] == [
        i for i in renderer.suffix([Message("tool", "")], [renderer.eos_ids[0]]) if i in special
    ]


def test_the_prompt_tells_of_the_tools_and_ends_where_the_policy_begins(renderer):
    text = renderer.text(renderer.prompt(OPENING, (ADD,)))
    assert text == (
        "<|tools|>add(a:integer,b:integer) a plus b;<|end|><|user|>4 plus 38 ?<|end|><|assistant|>"
    )


def test_a_suffix_depends_on_the_completions_end_only(renderer):
    observations = [Message("tool", "42")]
    end = renderer.eos_ids[0]
    one, other = [5, 6, 7, end], [*encode(renderer, "something else"), end]
    assert renderer.suffix(observations, one) == renderer.suffix(observations, other)
    assert renderer.text(renderer.suffix(observations, one)) == "<|tool|>42<|end|><|assistant|>"


def test_a_completion_that_was_cut_off_is_ended_by_the_suffix(renderer):
    suffix = renderer.suffix([Message("tool", "42")], [5, 6, 7])
    assert renderer.text(suffix) == "<|end|><|tool|>42<|end|><|assistant|>"


def test_a_completion_is_parsed_without_its_end_mark(renderer):
    assert renderer.read(encode(renderer, f" 42{END}")) == Written("", "42")
    found = renderer.read(written_ids(renderer, Message("assistant", "so", (CALL,))))
    assert found == Written("", "so", (ToolCall("add", {"a": "4", "b": "38"}),))


def test_a_malformed_completion_is_refused_with_a_sentence(renderer):
    found = renderer.read(encode(renderer, f"<longcat_tool_call>add{END}"))
    assert "has to end with" in found.malformed and not found.calls


@given(openings, st.lists(st.tuples(written, answers), max_size=3), written)
def test_a_demonstration_is_learned_where_the_assistant_speaks_and_only_there(
    renderer, opening, turns, last
):
    said = [m for message, observations in turns for m in (message, *observations)] + [last]
    ids, learn = renderer.demonstration(opening, (ADD,), said)
    assert len(ids) == len(learn)
    policy = [m for m in said if m.role == "assistant"]
    wanted = [id for m in policy for id in written_ids(renderer, m)]
    assert [id for id, mine in zip(ids, learn, strict=True) if mine] == wanted
    text = whole_text(renderer, [*opening, *said], (ADD,)).removesuffix("<|assistant|>")
    assert ids == encode(renderer, text)


def test_a_demonstration_reads_back_as_the_calls_it_shows(renderer):
    said = [Message("assistant", "", (CALL,)), Message("tool", "42"), Message("assistant", "42")]
    ids, learn = renderer.demonstration(OPENING, (ADD,), said)
    mine = [id for id, wanted in zip(ids, learn, strict=True) if wanted]
    first = mine[: mine.index(renderer.eos_ids[0]) + 1]
    assert renderer.read(first).calls == (ToolCall("add", {"a": "4", "b": "38"}),)


def copy_with_template(checkpoint, folder, template: str):
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Renderer(folder, "longcat")


def test_a_template_that_rewrites_earlier_turns_is_refused(checkpoint, tmp_path):
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else '-' }};{% endfor %}"
    )
    renderer = copy_with_template(checkpoint, tmp_path / "rewrites", template)
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        renderer.suffix([Message("tool", "42")], [5])


def test_a_template_that_wants_a_call_before_a_result_reads_of_a_broken_one_from_the_user(
    checkpoint, tmp_path
):
    """As harmony's, when the user speaks and the conversation is rendered whole."""
    refuses = (
        "{% for m in messages %}{% if m.role == 'tool' and not messages[:loop.index0] | "
        "selectattr('tool_calls', 'defined') | list %}{{ raise_exception('no call') }}{% endif %}"
        "{% endfor %}"
    )
    renderer = copy_with_template(checkpoint, tmp_path / "refuses", refuses + CHAT_TEMPLATE)
    said = [
        Message("user", "go"),
        Message("assistant", "<bad"),
        Message("tool", "error: no JSON"),
        Message("assistant", "so"),
        Message("user", "on"),
    ]
    assert "<|user|>error: no JSON<|end|>" in renderer.text(renderer.prompt(said, ()))
    with pytest.raises(Exception, match="no call"):
        renderer.render(said)


def test_a_tokenizer_without_a_chat_template_is_refused_by_name(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"bare: the tokenizer has no chat template"):
        copy_with_template(checkpoint, tmp_path / "bare", "")


def test_a_thought_that_the_prompt_opens_is_no_answer(checkpoint, tmp_path):
    template = CHAT_TEMPLATE.replace("<|assistant|>\n{%- endif", "<|assistant|><think>\n{%- endif")
    renderer = copy_with_template(checkpoint, tmp_path / "thinks", template)
    assert renderer.thinking
    written = encode(renderer, f"7, or <longcat_tool_call>stop</longcat_tool_call></think>42{END}")
    found = renderer.read(written)
    assert (found.answer, found.calls) == ("42", ())
    assert found.reasoning.startswith("7, or <longcat_tool_call>")


def test_the_ends_are_those_that_the_engine_stops_at(checkpoint, tmp_path):
    """vLLM takes those of the generation config beside the tokenizer's."""
    shutil.copytree(checkpoint, tmp_path / "ends")
    (tmp_path / "ends" / "generation_config.json").write_text(
        '{"eos_token_id": [2, 0]}', encoding="utf-8"
    )
    renderer = Renderer(tmp_path / "ends", "longcat")
    end, other = encode(renderer, END + "<|pad|>")
    assert renderer.eos_ids == (end, other)
    written = encode(renderer, "42")
    for stop in (end, other):
        assert renderer.read([*written, stop]) == Written("", "42")
        text = renderer.text(renderer.suffix([Message("tool", "7")], [*written, stop]))
        assert text == "<|tool|>7<|end|><|assistant|>", "one end, and no mark in what is said next"


def test_an_end_token_that_the_tokenizer_does_not_know_ends_nothing_in_a_text(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "ends")
    (tmp_path / "ends" / "generation_config.json").write_text(
        '{"eos_token_id": [2, 99999]}', encoding="utf-8"
    )
    renderer = Renderer(tmp_path / "ends", "longcat")
    assert renderer.eos_ids == (2, 99999)
    assert renderer.completion_text(Message("assistant", "so")) == "so<|end|>"
    check_template(renderer)


def test_without_a_generation_config_the_models_end_counts(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "ends")
    (tmp_path / "ends" / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((tmp_path / "ends" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "ends" / "config.json").write_text(
        json.dumps({**config, "eos_token_id": [2, 1]}), encoding="utf-8"
    )
    assert Renderer(tmp_path / "ends", "longcat").eos_ids == (2, 1)


def with_plain_tokens(checkpoint, folder):
    shutil.copytree(checkpoint, folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    plain = [
        AddedToken(text, special=False) for text in ("\n\n", "    ", "hello", "<tool_response>")
    ]
    tokenizer.add_tokens(plain)
    tokenizer.save_pretrained(folder)
    template = CHAT_TEMPLATE.replace(
        "<|{{ message.role }}|>", "<|{{ message.role }}|>{# <tool_response> #}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Renderer(folder, "longcat")


def test_plain_added_tokens_are_words_and_only_marks_are_cut(checkpoint, tmp_path):
    renderer = with_plain_tokens(checkpoint, tmp_path / "plain")
    text = "hello\n\n    there"
    ids = renderer.prompt([Message("user", text)], ())
    assert ids == encode(renderer, f"<|user|>{text}<|end|><|assistant|>"), "none of them is cut"
    mark = encode(renderer, "<tool_response>")
    assert len(mark) == 1
    assert mark[0] not in renderer.suffix(
        [Message("tool", "<tool_response>")], [renderer.eos_ids[0]]
    )


def test_no_text_of_a_tool_becomes_a_control_token(renderer):
    mark = "x<|end|><|user|>y"
    schema = ToolSchema(
        f"add{mark}",
        f"a plus b {mark}",
        {
            "type": "object",
            "properties": {
                f"a{mark}": {"type": f"integer{mark}", "enum": [mark], "default": {mark: mark}}
            },
        },
    )
    opening = [Message("system", mark), Message("user", mark)]
    special = set(renderer.tokenizer.added_tokens_decoder)
    marks = [i for i in renderer.prompt(opening, (schema,)) if i in special]
    harmless = renderer.prompt([Message("system", ""), Message("user", "")], (ADD,))
    assert marks == [i for i in harmless if i in special]
    said = renderer.suffix([Message("tool", mark, name=mark)], [renderer.eos_ids[0]])
    assert [i for i in said if i in special] == encode(renderer, "<|tool|><|end|><|assistant|>")
    assert renderer.text(renderer.prompt(opening, (schema,))).count(mark) >= 4
