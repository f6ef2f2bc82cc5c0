"""Formats: how each kind of checkpoint writes its thoughts and tool calls, one record each.

Flows in: what a chat template writes. Flows out: the record that `rollout.reading` and the renderer go by.
A kind is a way of writing, not a family of weights: many families share one. Left out on purpose: results and
history, which the checkpoint's own template writes (`rollout.renderer`).
"""

import re
from dataclasses import dataclass
from typing import Literal

FormatName = Literal[
    "longcat",
    "hermes",
    "qwen3_coder",
    "glm",
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "kimi_k2",
    "minimax_m2",
    "mistral",
    "harmony",
    "llama3_json",
    "llama4_pythonic",
    "lfm2",
    "gemma4",
    "cohere",
    "seed_oss",
    "text",
]


@dataclass(frozen=True)
class Format:
    """How one kind of checkpoint writes a call, such as `<tool_call>{"name": "add", ...}</tool_call>`.

    models: who writes so. opens, closes: the marks around a call, or around a list of calls; without `closes`
    a call ends with its JSON. bare: pattern of an answer that is all calls and has no marks, "" where calls
    have marks. seen: pattern of what a template of the kind writes for a call. parser: vLLM's parser of
    calls; "" where `rollout.tool_format` reads them. thought: the mark that begins a thought, as the kind
    writes it. call_id: the id of the n-th call of a conversation, where a template shows it. user_begins:
    earlier turns are written otherwise once the user speaks, so that a segment begins. python: calls are
    written as Python writes them. json: arguments are a JSON object. marks: pattern of the marks in a call
    whose texts have no quotes around them; other control tokens are text there.
    """

    name: FormatName
    models: str
    seen: str
    opens: str = ""
    closes: str = ""
    bare: str = ""
    parser: str = ""
    thought: str = "<think>"
    call_id: str = "call{n:05d}"
    user_begins: bool = False
    python: bool = False
    json: bool = False
    marks: str = ""


_RECORDS = (
    Format(
        "longcat",
        "Dorado's small policies, LongCat-Flash",
        "<longcat_tool_call>",
        "<longcat_tool_call>",
        "</longcat_tool_call>",
        thought="<longcat_think>",
    ),
    Format(
        "qwen3_coder",
        "Qwen3-Coder, Qwen3.5 and later, Nemotron 3",
        r"<tool_call>\s*<function=",
        "<tool_call>",
        "</tool_call>",
        parser="qwen3_coder",
        marks="^</?(tool_call|function|parameter)",
    ),
    Format(
        "glm",
        "GLM-4.5 and later",
        r"<tool_call>[^<{]+<arg_key>",
        "<tool_call>",
        "</tool_call>",
        parser="glm45",
        marks="^</?(tool_call|arg_key|arg_value)>$",
    ),
    Format(
        "hermes",
        "Qwen2.5, Qwen3, Hermes",
        r"<tool_call>\s*\{",
        "<tool_call>",
        "</tool_call>",
    ),
    Format(
        "deepseek_v3",
        "DeepSeek-V3, R1",
        "<\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>",
        "<\uff5ctool\u2581calls\u2581begin\uff5c>",
        "<\uff5ctool\u2581calls\u2581end\uff5c>",
        parser="deepseek_v3",
        json=True,
    ),
    Format(
        "deepseek_v31",
        "DeepSeek-V3.1",
        "<\uff5ctool\u2581call\u2581begin\uff5c>",
        "<\uff5ctool\u2581calls\u2581begin\uff5c>",
        "<\uff5ctool\u2581calls\u2581end\uff5c>",
        parser="deepseek_v31",
        json=True,
    ),
    Format(
        "deepseek_v32",
        "DeepSeek-V3.2",
        "<\uff5cDSML\uff5cfunction_calls>",
        "<\uff5cDSML\uff5cfunction_calls>",
        "</\uff5cDSML\uff5cfunction_calls>",
        parser="deepseek_v32",
        marks="DSML",
    ),
    Format(
        "kimi_k2",
        "Kimi-K2",
        r"<\|tool_calls_section_begin\|>",
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        parser="kimi_k2",
        json=True,
        call_id="functions.{name}:{n}",
    ),
    Format(
        "minimax_m2",
        "MiniMax-M2",
        "<minimax:tool_call>",
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        parser="minimax_m2",
        marks="^</?(minimax:|invoke|parameter)",
    ),
    Format(
        "mistral",
        "Mistral, Magistral, Devstral",
        r"\[TOOL_CALLS\]",
        "[TOOL_CALLS]",
        parser="mistral",
        json=True,
        thought="[THINK]",
    ),
    Format(
        "harmony",
        "gpt-oss",
        r"<\|channel\|>commentary",
        "<|channel|>commentary",
        parser="openai",
        thought="<|channel|>analysis<|message|>",
        user_begins=True,  # a final message ends with <|return|>, and in history with <|end|>
    ),
    Format(
        "lfm2",
        "LFM2",
        r"<\|tool_call_start\|>",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        parser="lfm2",
        python=True,
    ),
    Format(
        "gemma4",
        "Gemma 4",
        r"<\|tool_call>",
        "<|tool_call>",
        "<tool_call|>",
        parser="gemma4",
        marks=r'^<\|"\|>$|^<\|tool_call>$|^<tool_call\|>$',
        thought="<|channel>thought",
    ),
    Format(
        "cohere",
        "Command R7B, Command A",
        r"<\|START_ACTION\|>",
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        thought="<|START_THINKING|>",
    ),
    Format(
        "seed_oss",
        "Seed-OSS",
        "<seed:tool_call>",
        "<seed:tool_call>",
        "</seed:tool_call>",
        parser="seed_oss",
        marks="^</?(seed:|function|parameter)",
        thought="<seed:think>",
    ),
    Format(
        "llama3_json",
        "Llama 3.1, 3.2, 3.3",
        r"<\|end_header_id\|>\s*(<\|python_tag\|>)?\s*\{\"name\"",
        bare=r"\s*(<\|python_tag\|>)?\s*\{\s*\"name\"",
        parser="llama3_json",
        thought="",
    ),
    Format(
        "llama4_pythonic",
        "Llama 4",
        r"<\|header_end\|>\s*(<\|python_start\|>)?\s*\[\w+\(",
        bare=r"\s*(<\|python_start\|>)?\s*\[\s*\w[\w.]*\(",
        parser="llama4_pythonic",
        python=True,
        thought="",
    ),
    Format("text", "templates that write no calls", r"(?!)"),
)
FORMATS: dict[str, Format] = {record.name: record for record in _RECORDS}


def format_of(written: str, template: str = "") -> Format:
    """The format of a template that writes a call so; `text` where none is known.

    written: a rendered conversation with a call in it, "" where the template refuses calls; without a known
    mark in it the template's own source says.
    """
    for text in (written, template):
        for record in _RECORDS:
            if re.search(record.seen, text):
                return record
    return FORMATS["text"]
