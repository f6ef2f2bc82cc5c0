"""Chats made by hand for tests: rows in OpenAI's form, and the texts that a policy sees and writes in each.

The texts are those of Dorado's own chat template, put down here piece by piece.
"""

import json
import random
from typing import Any

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} of two numbers",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            },
        },
    }
    for name in ("add", "multiply")
]
_TOLD = "<|tools|>" + "".join(
    f"{tool['function']['name']}(a:integer,b:integer) {tool['function']['description']};"  # pyright: ignore
    for tool in TOOLS
)
_WORDS = [
    "the",
    "sum",
    "of",
    "seven,",
    "then",
    "ten",
    "more!",
    "Größe",
    "3.5",
    "—",
    "done\nand",
    "a",
    "line",
]

# (text, True where the policy learns to write it).
Piece = tuple[str, bool]


def made_chats(count: int, seed: int = 0) -> list[tuple[dict[str, Any], list[Piece]]]:
    """Rows, and what each is as text."""
    rng = random.Random(seed)
    return [_chat(rng) for _ in range(count)]


def _chat(rng: random.Random) -> tuple[dict[str, Any], list[Piece]]:
    messages: list[dict[str, Any]] = []
    text = ""
    pieces: list[Piece] = []
    tools = rng.random() < 0.6
    if tools:
        text += f"{_TOLD}<|end|>"
    if rng.random() < 0.4:
        messages.append({"role": rng.choice(["system", "developer"]), "content": _words(rng)})
        text += f"<|system|>{messages[-1]['content']}<|end|>"
    for _ in range(rng.randint(1, 3)):
        said = _words(rng)
        parts = [{"type": "text", "text": said}] if rng.random() < 0.2 else said
        messages.append({"role": "user", "content": parts})
        text += f"<|user|>{said}<|end|>"
        if tools and rng.random() < 0.7:
            text = _calls(rng, messages, pieces, text)
        text = _answer(rng, messages, pieces, text)
    row: dict[str, Any] = {"messages": messages}
    if tools:
        row["tools"] = json.dumps(TOOLS) if rng.random() < 0.5 else TOOLS
    return row, pieces


def _calls(
    rng: random.Random, messages: list[dict[str, Any]], pieces: list[Piece], text: str
) -> str:
    """One or two calls at once, and their results; returns the text that comes after."""
    calls = []
    written = results = ""
    answers = []
    for number in range(rng.randint(1, 2)):
        name, id = rng.choice(["add", "multiply"]), f"call_{len(messages)}_{number}"
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        arguments: Any = {"a": a, "b": b}
        if rng.random() < 0.7:
            arguments = json.dumps(arguments)
        function = {"name": name, "arguments": arguments}
        calls.append({"id": id, "type": "function", "function": function})
        answers.append({"role": "tool", "tool_call_id": id, "content": str(a + b)})
        written += (
            f"<longcat_tool_call>{name}<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>{a}"
            f"</longcat_arg_value><longcat_arg_key>b</longcat_arg_key><longcat_arg_value>{b}"
            "</longcat_arg_value></longcat_tool_call>"
        )
        results += f"<|tool|>{a + b}<|end|>"
    messages += [{"role": "assistant", "content": None, "tool_calls": calls}, *answers]
    pieces += [(f"{text}<|assistant|>", False), (f"{written}<|end|>", True)]
    return results


def _answer(
    rng: random.Random, messages: list[dict[str, Any]], pieces: list[Piece], text: str
) -> str:
    """One answer, or two in a row; some of the first carry no loss."""
    for number in range(2 if rng.random() < 0.1 else 1):
        weight = (
            0 if number == 0 and rng.random() < 0.1 and any(learnt for _, learnt in pieces) else 1
        )
        said = _words(rng)
        messages.append({"role": "assistant", "content": said})
        if weight == 0:
            messages[-1]["weight"] = 0
        pieces += [(f"{text}<|assistant|>", False), (f"{said}<|end|>", bool(weight))]
        text = ""
    return ""


def _words(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 8)))
