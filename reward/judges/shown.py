"""Trajectories as a judge sees them: the question, the answer, the steps; no thought is shown."""

import json

from envs.message import Message
from rollout.trajectory import Trajectory, Turn


def question_of(trajectory: Trajectory) -> str:
    """The policy's question: the opening's messages, the system's left out."""
    said = [one.content for one in trajectory.opening if one.role != "system"]
    return "\n\n".join(said)


def answer_of(trajectory: Trajectory) -> str:
    """The text of the last turn."""
    return trajectory.turns[-1].text.strip() if trajectory.turns else ""


def conversation(trajectory: Trajectory) -> tuple[Message, ...]:
    """Return the messages of a trajectory, the system's included, up to its last answer."""
    messages = list(trajectory.opening)
    for turn in trajectory.turns:
        messages.append(Message("assistant", turn.text.strip(), turn.calls))
        messages += turn.observations
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return tuple(messages)


def step_of(turn: Turn, most: int = 2000) -> str:
    """One turn: what was written, called and seen."""
    parts = [turn.text.strip()] if turn.text.strip() else []
    parts += [f"call {c.name}({json.dumps(c.arguments, ensure_ascii=False)})" for c in turn.calls]
    if turn.malformed:
        parts.append("a tool call that cannot be read")
    parts += [f"{_who(one)}: {one.content[:most]}" for one in turn.observations]
    return "\n".join(parts)


def words(text: str) -> int:
    """Words of a text, by spaces."""
    return len(text.split())


def _who(message: Message) -> str:
    return "result" if message.role == "tool" else message.role
