"""Generated tool calls, and how each format writes them: for tests and for `benchmarks/formats.py`.

The writers are by hand, after the checkpoints' own templates; they share no code with the readers.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from envs.message import ToolCall, ToolSchema

BAR, LOW = "\uff5c", "\u2581"
# What stands in strings: quotes, raw newlines, unicode, JSON, and the marks of every format.
PIECES = (
    "iron", "17 grams", " ", "  indented", '"', "'", "\\", "\\n", "\n", "\t", "é", "漢字", "🙂", "\u2028",
    "{", "}", "[1, 2]", '{"name": "f", "arguments": {}}', ", ", ":", "=", "&amp;", "<b>", "true", "null",
    "<think>", "</think>", "[THINK]", "<tool_call>", "</tool_call>", "<longcat_tool_call>",
    "</longcat_tool_call>", "<function=f>", "</function>", "<parameter=a>", "</parameter>", "<arg_key>",
    "</arg_value>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call_end|>", "<|END_ACTION|>", "</invoke>", "```",
    f"<{BAR}tool{LOW}calls{LOW}end{BAR}>", "<|channel|>", "<|call|>", "parameters", "arguments",
)  # fmt: skip
# Formats without quotes: a string cannot hold what the format's own marks begin with, nor blanks at its ends.
UNQUOTED = {
    "longcat": ("longcat_",),
    "qwen3_coder": ("<parameter", "</parameter", "<function", "</function", "tool_call>"),
    "seed_oss": ("<parameter", "</parameter", "<function", "</function", "seed:"),
    "glm": ("arg_key", "arg_value", "tool_call>"),
    "minimax_m2": ("<parameter", "</parameter", "invoke", "minimax:"),
    "deepseek_v32": ("DSML",),
    "gemma4": ('<|"|>',),
}
# vLLM's parser types arguments, and gives what is inside lists and objects as texts.
UNTYPED = ("gemma4",)
# Control tokens end a message of harmony's wherever they stand: the policy writes them as tokens.
CONTROL = {"harmony": ("<|channel|>", "<|call|>")}
TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
}


def generated(rng: random.Random, format: str) -> tuple[list[ToolCall], list[ToolSchema]]:
    """One to three calls that a format can write, and the tools they are of."""
    calls = [_call(rng, format) for _ in range(rng.choice((1, 1, 2, 3)))]
    return calls, [_tool(call) for call in calls]


def _call(rng: random.Random, format: str) -> ToolCall:
    letters = "".join(rng.choice("abcdefg_") for _ in range(rng.randint(1, 9)))
    name = f"f{letters}{rng.randint(0, 999_999)}"
    keys = rng.sample(
        ("a", "path", "text", "unit_2", "parameters", "arguments", "name"), rng.randint(0, 4)
    )
    return ToolCall(name, {key: _value(rng, format) for key in keys})


def _value(rng: random.Random, format: str, depth: int = 0) -> Any:
    kind = 0.0 if format == "longcat" else rng.random()  # LongCat's values are texts
    if kind < 0.5 or (depth and (kind < 0.6 or (kind < 0.8 and format in UNTYPED))):
        return _text(rng, format)
    if kind < 0.7:
        return rng.randint(-(10**12), 10**12)
    if kind < 0.75:
        return rng.random() < 0.5
    if kind < 0.8:
        return rng.choice((0.5, -3.25, 1e-7))
    if depth == 2:
        return None if format not in UNTYPED else "none"
    if kind < 0.9:
        return [_value(rng, format, depth + 1) for _ in range(rng.randint(0, 3))]
    return {_key(rng): _value(rng, format, depth + 1) for _ in range(rng.randint(0, 3))}


def _key(rng: random.Random) -> str:
    return rng.choice("klmn") + str(rng.randint(0, 99))


def _text(rng: random.Random, format: str) -> str:
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
    for mark in (*UNQUOTED.get(format, ()), *CONTROL.get(format, ())):
        text = text.replace(mark, "")
    if format in UNQUOTED:
        text = text.strip() or "so"
    return text


def _tool(call: ToolCall) -> ToolSchema:
    properties = {key: {"type": TYPES[type(value)]} for key, value in call.arguments.items()}
    return ToolSchema(call.name, "does it", {"type": "object", "properties": properties})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _raw(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _gemma(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma(one)}" for key, one in value.items()) + "}"
    return "[" + ",".join(map(_gemma, value)) + "]" if isinstance(value, list) else _json(value)


def _tagged(call: ToolCall, head: str, one: str, tail: str) -> str:
    pairs = "".join(one.format(k=k, v=_raw(v)) for k, v in call.arguments.items())
    return head.format(n=call.name) + pairs + tail


def _python(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})"


def _each(
    write: Callable[[ToolCall], str], between: str = ""
) -> Callable[[Sequence[ToolCall]], str]:
    return lambda calls: between.join(map(write, calls))


def _around(
    begin: str, write: Callable[[ToolCall], str], end: str, between: str = ""
) -> Callable[[Sequence[ToolCall]], str]:
    return lambda calls: begin + between.join(map(write, calls)) + end


def _deepseek(mark: str) -> str:
    return f"<{BAR}{mark.replace('_', LOW)}{BAR}>"


def _dsml(call: ToolCall) -> str:
    pairs = "".join(
        f'<{BAR}DSML{BAR}parameter name="{k}" string="{str(isinstance(v, str)).lower()}">'
        f"{_raw(v)}</{BAR}DSML{BAR}parameter>\n"
        for k, v in call.arguments.items()
    )
    return f'<{BAR}DSML{BAR}invoke name="{call.name}">\n{pairs}</{BAR}DSML{BAR}invoke>\n'


def _kimi(calls: Sequence[ToolCall]) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{c.name}:{n}<|tool_call_argument_begin|>{_json(c.arguments)}<|tool_call_end|>"
        for n, c in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def _cohere(calls: Sequence[ToolCall]) -> str:
    listed = [
        {"tool_call_id": str(n), "tool_name": c.name, "parameters": c.arguments}
        for n, c in enumerate(calls)
    ]
    return f"<|START_ACTION|>{_json(listed)}<|END_ACTION|>"


WRITERS: dict[str, Callable[[Sequence[ToolCall]], str]] = {
    "longcat": _each(
        lambda c: _tagged(
            c,
            "<longcat_tool_call>{n}",
            "<longcat_arg_key>{k}</longcat_arg_key><longcat_arg_value>{v}</longcat_arg_value>",
            "</longcat_tool_call>",
        )
    ),
    "hermes": _each(
        lambda c: f"<tool_call>\n{_json({'name': c.name, 'arguments': c.arguments})}\n</tool_call>",
        "\n",
    ),
    "qwen3_coder": _each(
        lambda c: _tagged(
            c,
            "<tool_call>\n<function={n}>\n",
            "<parameter={k}>\n{v}\n</parameter>\n",
            "</function>\n</tool_call>",
        ),
        "\n",
    ),
    "seed_oss": _each(
        lambda c: _tagged(
            c,
            "<seed:tool_call>\n<function={n}>\n",
            "<parameter={k}>{v}</parameter>\n",
            "</function>\n</seed:tool_call>",
        )
    ),
    "glm": _each(
        lambda c: _tagged(
            c,
            "<tool_call>{n}\n",
            "<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n",
            "</tool_call>",
        ),
        "\n",
    ),
    "minimax_m2": _around(
        "<minimax:tool_call>\n",
        lambda c: _tagged(
            c, '<invoke name="{n}">\n', '<parameter name="{k}">{v}</parameter>\n', "</invoke>\n"
        ),
        "</minimax:tool_call>",
    ),
    "deepseek_v3": _around(
        _deepseek("tool_calls_begin"),
        lambda c: (
            f"{_deepseek('tool_call_begin')}function{_deepseek('tool_sep')}{c.name}\n```json\n"
            f"{_json(c.arguments)}\n```{_deepseek('tool_call_end')}"
        ),
        _deepseek("tool_calls_end"),
        "\n",
    ),
    "deepseek_v31": _around(
        _deepseek("tool_calls_begin"),
        lambda c: (
            f"{_deepseek('tool_call_begin')}{c.name}{_deepseek('tool_sep')}{_json(c.arguments)}"
            f"{_deepseek('tool_call_end')}"
        ),
        _deepseek("tool_calls_end"),
    ),
    "deepseek_v32": _around(
        f"<{BAR}DSML{BAR}function_calls>\n", _dsml, f"</{BAR}DSML{BAR}function_calls>"
    ),
    "kimi_k2": _kimi,
    "mistral": _each(lambda c: f"[TOOL_CALLS]{c.name}[ARGS]{_json(c.arguments)}"),
    "harmony": _each(
        lambda c: (
            f"<|channel|>commentary to=functions.{c.name} <|constrain|>json<|message|>"
            f"{_json(c.arguments)}<|call|>"
        ),
        "<|start|>assistant",
    ),
    "lfm2": _around("<|tool_call_start|>[", _python, "]<|tool_call_end|>", ", "),
    "llama4_pythonic": _around("[", _python, "]", ", "),
    "gemma4": _each(
        lambda c: (
            f"<|tool_call>call:{c.name}"
            + "{"
            + ",".join(f"{k}:{_gemma(v)}" for k, v in c.arguments.items())
            + "}<tool_call|>"
        )
    ),
    "cohere": _cohere,
    "llama3_json": _each(lambda c: _json({"name": c.name, "parameters": c.arguments}), "; "),
}
# Marks that vLLM's parsers want in a vocabulary.
MARKS = (
    "<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<seed:tool_call>",
    "</seed:tool_call>", "<seed:think>", "</seed:think>", "<minimax:tool_call>", "</minimax:tool_call>",
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
    "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_call_start|>",
    "<|tool_call>", "<tool_call|>", '<|"|>', "<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>",
    "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>",
    "<|python_tag|>", "<|python_start|>", "<|python_end|>", "<|channel|>", "<|message|>", "<|start|>",
    "<|end|>", "<|call|>", "<|return|>", "<|channel>", "<channel|>", "<|im_start|>", "<|im_end|>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    *(
        _deepseek(mark)
        for mark in (
            "tool_calls_begin", "tool_calls_end", "tool_call_begin", "tool_call_end", "tool_sep", "DSML",
        )
    ),
)  # fmt: skip


def tokenizer() -> Any:
    """A byte-level tokenizer that has all of these marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", additional_special_tokens=list(MARKS)
    )
