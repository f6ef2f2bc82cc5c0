"""History: what of earlier thoughts a chat template keeps when a conversation goes on.

Flows in: the template, as a function of messages. Flows out: a record. Where a template drops the thoughts of
earlier turns, what the policy sees is no longer what it wrote: the next turn begins a segment of the
trajectory (`rollout.context`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from envs.message import Message, ToolCall, ToolSchema
from rollout.thought import THOUGHTS

# all: every thought stays. until_user: thoughts stay while tools answer, and go when the user speaks. none: a
# turn's thought goes as soon as the next one begins.
History = Literal["all", "until_user", "none"]
Render = Callable[[Sequence[Message], Sequence[ToolSchema]], str]

PROBED = ToolSchema(
    "weigh", "weighs", {"type": "object", "properties": {"probe": {"type": "string"}}}
)
_ASKED = Message("user", "weigh the probe")
_WEIGHED = Message("tool", "17 grams", name=PROBED.name)
_CALL = (ToolCall(PROBED.name, {"probe": "iron"}),)
_THOUGHT = "heavy metal"


@dataclass(frozen=True)
class Thoughts:
    """How a template treats thoughts. kept: those of earlier turns. field: it writes a message's `reasoning`;
    otherwise a thought is a part of the text."""

    kept: History
    field: bool


def thoughts_of(render: Render, mark: str) -> Thoughts:
    """How a template treats thoughts. mark: begins one in an assistant's text, "" where none is known."""
    found: list[Thoughts] = []
    for field in (True, False) if mark in THOUGHTS else (True,):
        if _kept(render, _turn(mark, "it is heavy", (), field), (Message("user", "thank you"),)):
            found.append(Thoughts("all", field))
        elif _kept(render, _turn(mark, "", _CALL, field), (_WEIGHED,)):
            found.append(Thoughts("until_user", field))
    most = [one for one in found if one.kept == "all"] or found
    return most[0] if most else Thoughts("none", field=True)


def _turn(mark: str, answer: str, calls: tuple[ToolCall, ...], field: bool) -> Message:
    if field:
        return Message("assistant", answer, calls, reasoning=_THOUGHT)
    return Message("assistant", f"{mark}\n{_THOUGHT}\n{THOUGHTS[mark]}\n\n{answer}", calls)


def _kept(render: Render, turn: Message, said: tuple[Message, ...]) -> bool:
    """True if a turn's thought is still there after `said`; False too where the template refuses them."""
    try:
        return _THOUGHT in render((_ASKED, turn, *said), (PROBED,))
    except Exception:  # the template's own complaint
        return False
