"""Chat templates that episodes can be played with, and those that are refused, with what they lose."""

import json
import shutil

import pytest

from rollout.renderer import Renderer
from rollout.template_check import TemplateFault, check_template
from trainer.small.tokenizer import CHAT_TEMPLATE

TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
TURN = "<|{{ m.role }}|>"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
GENERATE = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PLAIN = (
    TOOLS
    + "{% for m in messages %}"
    + TURN
    + "{{ m.content }}"
    + CALLS
    + "<|end|>{% endfor %}"
    + GENERATE
)
OPENS = PLAIN.replace(GENERATE, GENERATE.replace("{% endif", "<think>\n{% endif"))
ROUNDS = (
    TOOLS
    + "{% set ns = namespace(n=0) %}{% for m in messages %}"
    + "{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}[Round {{ ns.n }}]{% endif %}"
    + PLAIN.partition("{% for m in messages %}")[2]
)
# The tool's role is unknown to it, as in Phi-3's.
NO_TOOL_TURN = PLAIN.replace(
    "{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"
)
# The turn is there and empty, as in Command R7B's.
EMPTY_TOOL_TURN = PLAIN.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}")
# Thoughts stay while tools are called and are dropped once the user speaks again, as in Qwen3's.
FORGETS = PLAIN.replace(
    "{% for m in messages %}",
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index %}{% endif %}{% endfor %}{% for m in messages %}",
).replace(
    "{{ m.content }}",
    "{{ m.content.split('</think>')[-1] if loop.index < ns.last else m.content }}",
)
DROPS = OPENS.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
MESSAGES = "{%- for message in messages -%}"
REFUSED = {
    "rounds": (ROUNDS, r"writes the user's message after turn 2 \(role 'user'\) as .*Round 3.*Round 2"),
    "no tool turn": (NO_TOOL_TURN, "leaves out the empty result of the tool called in turn 1"),
    "empty tool turn": (EMPTY_TOOL_TURN, r"loses '17 grams' in the result of the tool called in turn 2"),
    "tools at the end": (
        PLAIN.replace(TOOLS, "").replace(TURN, "{% if loop.last %}" + TOOLS + "{% endif %}" + TURN),
        "writes the opening as",
    ),
    "a system message refused": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system!') }}{% endif %}" + PLAIN,
        r"refuses the system message \(role 'system'\): no system!",
    ),
    "a tool refused": (
        PLAIN.replace(TURN, TURN + "{% if m.role == 'tool' %}{{ raise_exception('no tools!') }}{% endif %}"),
        r"refuses the empty result of the tool called in turn 1 \(role 'tool'\): no tools!",
    ),
    "a system message dropped": (
        PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        "loses 'probe rule' in the system message",
    ),
    "cut texts": (PLAIN.replace("{{ m.content }}", "{{ m.content[:8] }}"), "loses 'probe rule'"),
    "no calls": (PLAIN.replace(CALLS, ""), "loses 'iron' in the assistant's tool call of turn 1"),
    "no tools": (PLAIN.replace(TOOLS, ""), "does not tell the policy of its tools"),
    "no end": (PLAIN.replace("<|end|>", "\n"), r"ends the assistant's turn with no end token \("),
    "last turn only": (
        PLAIN.replace("{{ m.content }}", "{{ m.content if loop.last else '-' }}"),
        "loses 'probe rule'|rewrites earlier turns",
    ),
}  # fmt: skip


@pytest.fixture
def renderer_of(checkpoint, tmp_path):
    """Builds the renderer of a copy of the checkpoint with another template."""

    def build(template: str, **generation) -> Renderer:
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        if generation:
            (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        return Renderer(folder, "hermes")

    return build


@pytest.mark.parametrize(("template", "history"), [(FORGETS, "until_user"), (DROPS, "none")])
def test_a_template_that_drops_thoughts_is_played_in_segments_and_refused_for_one_sequence(
    renderer_of, template, history
):
    renderer = renderer_of(template)
    check_template(renderer)
    assert renderer.history == history
    with pytest.raises(TemplateFault, match="drops the thoughts of earlier turns"):
        check_template(renderer, one_sequence=True)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PLAIN, OPENS])
def test_a_template_that_writes_every_message_in_its_place_is_accepted(renderer_of, template):
    check_template(renderer_of(template))


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_loses_or_rewrites_is_refused_with_role_and_turn(renderer_of, name):
    template, sentence = REFUSED[name]
    with pytest.raises(TemplateFault, match=rf"copy: the chat template ({sentence})") as caught:
        check_template(renderer_of(template))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [ROUNDS, FORGETS, DROPS, NO_TOOL_TURN])
def test_a_policy_of_one_turn_needs_no_later_ones(renderer_of, template):
    check_template(renderer_of(template), turns=1)


def test_roles_that_no_environment_speaks_are_not_asked_for(renderer_of):
    check_template(renderer_of(REFUSED["a tool refused"][0]), roles=frozenset(("system",)))


def test_a_turn_that_the_generation_config_ends_is_ended(renderer_of):
    other = PLAIN.replace("<|end|>", "<|tool|>")
    renderer = renderer_of(other, eos_token_id=[2, 7])
    assert renderer.tokenizer.decode([7]) == "<|tool|>"
    check_template(renderer, roles=frozenset())
