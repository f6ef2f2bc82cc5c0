"""The parts of one trajectory's record that are searched and counted: words, tools, named rewards.

In: a JSON object as trajectories/*.jsonl has it, in which anything may be missing or of another type. Out:
one frozen record; nothing is raised for what a line holds. Token ids and log-probs are not looked at.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rl.dashboard.growing_lines import Object
from rl.dashboard.series import number

# Letters of a column that are kept of one trajectory, and of the first words of its task.
MOST_LETTERS, MOST_WORDS = 200_000, 160
_MOST_CALLS = 2000
_NUMBERS = re.compile(r"\d+")
ERROR = "error:"


@dataclass(frozen=True)
class ToolUse:
    """One call: its tool, its arguments as text, what an error said ("" where it went well).

    seconds: of the turn's tool phase, in equal parts of its calls; None where the record does not say.
    """

    tool: str
    arguments: str
    error: str
    seconds: float | None


@dataclass(frozen=True)
class RecordText:
    """The searched text by column, the first words of the task, the named rewards as JSON, the calls."""

    messages: str
    tools: str
    errors: str
    words: str
    rewards: str
    calls: tuple[ToolUse, ...]


def record_text(record: Object) -> RecordText:
    """Take out of a record what is searched and counted."""
    turns = _objects(record.get("turns"))
    opening = _objects(record.get("opening"))
    calls = tuple(_calls(record, turns))
    observed = [one for turn in turns for one in _objects(turn.get("observations"))]
    said = [_text(turn, key) for turn in turns for key in ("thought", "text")]
    messages = [*(_text(one, "content") for one in (*opening, *observed)), *said]
    errors = [_text(one, "content") for one in observed]
    errors = [text for text in errors if text.lower().startswith(ERROR)]
    rewards = record.get("rewards")
    named = {
        str(name)[:60]: value
        for name, one in (rewards.items() if isinstance(rewards, dict) else ())
        if (value := number(one)) is not None
    }
    return RecordText(
        messages=_joined(messages),
        tools=_joined([f"{call.tool} {call.arguments}" for call in calls]),
        errors=_joined([*errors, _text(record, "fault"), _text(record, "trace")]),
        words=first_words(opening),
        rewards=json.dumps(dict(list(named.items())[:20])),
        calls=calls,
    )


def first_words(opening: list[Object]) -> str:
    """The beginning of the task: of the first message of a user, or of the first one."""
    said = [_text(one, "content") for one in opening if one.get("role") == "user"]
    text = (said or [_text(one, "content") for one in opening[:1]] or [""])[0]
    return " ".join(text[: 4 * MOST_WORDS].split())[:MOST_WORDS]


def kind_of_error(text: str) -> str:
    """An error without what differs from one to the next: its first line, with # for each number."""
    line = text.strip().split("\n", 1)[0]
    return _NUMBERS.sub("#", line)[:200]


def _calls(record: Object, turns: list[Object]) -> Iterator[ToolUse]:
    """All calls in order. A turn with calls has one tool phase, and an observation for each call."""
    phases = [one for one in _objects(record.get("phases")) if one.get("name") == "tool"]
    seconds = iter([number(one.get("seconds")) for one in phases])
    left = _MOST_CALLS
    for turn in turns:
        calls = _objects(turn.get("calls"))[:left]
        if not calls:
            continue
        left -= len(calls)
        took = next(seconds, None)
        results = [_text(one, "content") for one in _objects(turn.get("observations"))]
        for place, call in enumerate(calls):
            result = results[place] if place < len(results) else ""
            yield ToolUse(
                tool=_text(call, "name")[:100],
                arguments=_json(call.get("arguments"))[:2000],
                error=kind_of_error(result) if result.lower().startswith(ERROR) else "",
                seconds=None if took is None else took / len(calls),
            )


def _objects(value: object) -> list[Object]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(record: Object, key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def _joined(texts: list[str]) -> str:
    return "\n".join(text for text in texts if text)[:MOST_LETTERS]


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return ""
