"""A key-value memory over many turns: facts arrive, change, are forgotten, and are asked for later.

user: ada is 31        assistant: set(key=ada, value=31)    tool: ok    assistant: ok
user: ben ?            assistant: get(key=ben)              tool: 72    assistant: 72

The store holds facts from before, which only `get` tells. Judged on every answer and on the store at the end:
an answer from what was just read, without keeping the store right, does not count. With `turn_rewards` each
right answer to a question is worth its share at that turn, whatever becomes of the store.
"""

import random

from pydantic import Field

from envs.builtin.words import PEOPLE
from envs.env import Env, EnvConfig, Expert, Reply, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

# How many lines are said, and what kinds of them besides a last question.
LINES = {1: 2, 2: 4, 3: 7, 4: 12}
KINDS = {
    1: ("tell",),
    2: ("tell", "change", "ask"),
    3: ("tell", "change", "forget", "ask"),
    4: ("tell", "change", "forget", "ask", "copy"),
}
SAID = {
    "tell": "{key} is {value}",
    "change": "{key} is now {value}",
    "forget": "forget {key}",
    "ask": "{key} ?",
    "copy": "{key} is now as {value}",
}


class MemoryConfig(EnvConfig):
    """difficulty: 1: a fact and a question. 2: facts change. 3: are forgotten; seven lines. 4: are copied;
    twelve. turn_rewards: give a second reward, `recalled`: the share of the questions that were answered
    right, each at the turn of its answer.
    """

    difficulty: int = Field(default=1, ge=1, le=4)
    turn_rewards: bool = False


class Memory(Env):
    """Keep a store of facts right over many turns, and answer from it."""

    name = "memory"
    reward_names = ("solved",)
    config_type = MemoryConfig
    config: MemoryConfig
    difficulties = 4

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__(config)
        if config.turn_rewards:
            self.reward_names = ("solved", "recalled")

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        people = rng.sample(PEOPLE, 4 + level)
        store = {key: str(rng.randint(10, 99)) for key in people[: 2 + level // 2]}
        facts = dict(store)
        lines: list[list[str]] = []
        for number in range(LINES[level]):
            last = number == LINES[level] - 1
            line = _line(rng, "ask" if last else rng.choice(KINDS[level]), facts, people, level)
            lines.append(line)
            remember(facts, *line)
        return {"difficulty": level, "store": store, "lines": lines}

    async def reset(self, task: Task) -> list[Message]:
        self.lines: list[list[str]] = task.data["lines"]
        self.start = task.data["store"]
        self.store = dict(self.start)
        self.answers: list[str] = []
        # The turn of each answer.
        self.answered_at: list[int] = []
        return [self._say()]

    def _say(self) -> Message:
        kind, key, value = self.lines[len(self.answers)]
        return Message("user", SAID[kind].format(key=key, value=value))

    @tool
    async def set(self, key: str, value: str) -> str:
        """keep a value"""
        self.store[key] = value
        return "ok"

    @tool(read_only=True)
    async def get(self, key: str) -> str:
        """a value, ? if none"""
        return self.store.get(key, "?")

    @tool
    async def delete(self, key: str) -> str:
        """forget a value"""
        if key not in self.store:
            raise ToolError(f"no {key!r}")
        del self.store[key]
        return "ok"

    async def reply(self, text: str) -> Reply:
        self.answers.append(text.strip())
        self.answered_at.append(self.turn_index)
        if len(self.answers) < len(self.lines):
            return Reply((self._say(),), done=False)
        return await super().reply(text)

    async def score(self) -> dict[str, float | dict[int, float]]:
        facts = dict(self.start)
        right = len(self.answers) == len(self.lines)
        share = 1 / sum(kind == "ask" for kind, _, _ in self.lines)
        recalled: dict[int, float] = {}
        for line, answer, turn in zip(self.lines, self.answers, self.answered_at, strict=False):
            remember(facts, *line)
            kind, key, _ = line
            if kind == "ask":
                correct = answer == facts.get(key, "?")
                recalled[turn] = share * correct
                right &= correct
        solved = float(right and self.store == facts)
        return (
            {"solved": solved, "recalled": recalled}
            if self.config.turn_rewards
            else {"solved": solved}
        )

    def expert(self, task: Task) -> Expert:
        for kind, key, value in task.data["lines"]:
            answer = "ok"
            if kind == "ask":
                answer = (yield call("get", key=key))[0]
            elif kind == "forget":
                yield call("delete", key=key)
            elif kind == "copy":
                copied = (yield call("get", key=value))[0]
                yield call("set", key=key, value=copied)
            else:
                yield call("set", key=key, value=value)
            yield say(answer)


def remember(facts: dict[str, str], kind: str, key: str, value: str) -> None:
    """Apply a line to the facts."""
    if kind in ("tell", "change"):
        facts[key] = value
    elif kind == "copy":
        facts[key] = facts[value]
    elif kind == "forget":
        del facts[key]


def _line(
    rng: random.Random, kind: str, facts: dict[str, str], people: list[str], level: int
) -> list[str]:
    """A line (kind, key, value) that fits the facts so far; from 3 on a question may be of the unknown."""
    new = [key for key in people if key not in facts]
    if kind == "tell" and not new:
        kind = "change"
    if kind == "forget" and len(facts) < 3:
        kind = "ask"
    known = people if kind == "ask" and level > 2 else list(facts)
    key, value = rng.choice(new if kind == "tell" else known), ""
    if kind in ("tell", "change"):
        value = str(rng.randint(10, 99))
    elif kind == "copy":
        value = rng.choice([other for other in facts if other != key])
    return [kind, key, value]
