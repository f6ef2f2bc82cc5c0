"""Chains of unit conversions and sums, each step with the result of the one before.

user: 3 km plus 40 m in m ?    assistant: convert(x=3, unit=km, to=m)    tool: 3000
assistant: add(a=3000, b=40)   tool: 3040                               assistant: 3040

Every number comes out whole. The answer has to be one that a tool has found.
"""

import random

from pydantic import Field

from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

# Units of one kind, each as many of the smallest.
UNITS = (
    {"km": 1_000_000, "m": 1000, "cm": 10, "mm": 1},
    {"t": 1_000_000, "kg": 1000, "g": 1},
    {"day": 86_400, "h": 3600, "min": 60, "s": 1},
    {"hl": 100_000, "l": 1000, "ml": 1},
)
FACTOR = {unit: (kind, factor) for kind, row in enumerate(UNITS) for unit, factor in row.items()}


class UnitsConfig(EnvConfig):
    """1: one conversion. 2: and a sum. 3: and a product. 4: a rate over a time."""

    difficulty: int = Field(default=1, ge=1, le=4)


class Units(Env):
    """Convert units and calculate, step by step."""

    name = "units"
    reward_names = ("solved",)
    config_type = UnitsConfig
    config: UnitsConfig
    difficulties = 4

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        names = list(rng.choice(UNITS))
        big = rng.randrange(len(names) - 1)
        small = rng.randrange(big + 1, len(names)) if level < 3 else big + 1
        data = {"difficulty": level, "big": names[big], "small": names[small]}
        if level == 4:  # a rate in one kind of unit, over a time
            names = list(rng.choice([row for row in UNITS if "h" not in row]))
            data |= {"big": names[-2], "small": names[-1]}
            data |= dict(
                zip(("long", "short"), rng.choice((("day", "h"), ("h", "min"))), strict=True)
            )
        data["a"] = rng.randint(2, 999 if level == 1 else 99)
        data |= {"b": rng.randint(2, 99)} if level > 1 else {}
        return data | ({"c": rng.randint(2, 9)} if level > 2 else {})

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.found: set[str] = set()
        return [Message("user", _ASK[task.data["difficulty"]].format(**task.data))]

    @tool(read_only=True)
    async def convert(self, x: float, unit: str, to: str) -> str:
        """x of a unit in another"""
        if unit not in FACTOR or to not in FACTOR or FACTOR[unit][0] != FACTOR[to][0]:
            raise ToolError(f"no way from {unit!r} to {to!r}")
        return self._note(x * FACTOR[unit][1] / FACTOR[to][1])

    @tool(read_only=True)
    async def add(self, a: float, b: float) -> str:
        """a plus b"""
        return self._note(a + b)

    @tool(read_only=True)
    async def times(self, a: float, b: float) -> str:
        """a times b"""
        return self._note(a * b)

    def _note(self, value: float) -> str:
        text = f"{value:.12g}"
        self.found.add(text)
        return text

    async def score(self) -> dict[str, float]:
        answer = (self.answer or "").strip()
        return {"solved": float(answer in self.found and answer == str(wanted(self.task)))}

    def expert(self, task: Task) -> Expert:
        level, a = task.data["difficulty"], task.data["a"]
        b, c = task.data.get("b"), task.data.get("c")
        big, small = task.data["big"], task.data["small"]
        if level < 4:
            x = (yield call("convert", x=a, unit=big, to=small))[0]
            if level > 1:
                x = (yield call("add", a=x, b=b))[0]
            if level > 2:
                x = (yield call("times", a=x, b=c))[0]
        else:
            time = (yield call("convert", x=c, unit=task.data["long"], to=task.data["short"]))[0]
            x = (yield call("times", a=time, b=a))[0]
            x = (yield call("convert", x=x, unit=big, to=small))[0]
            x = (yield call("add", a=x, b=b))[0]
        yield say(x)


_ASK = {
    1: "{a} {big} in {small} ?",
    2: "{a} {big} plus {b} {small} in {small} ?",
    3: "{a} {big} plus {b} {small}, all that {c} times, in {small} ?",
    4: "{a} {big} every {short} for {c} {long}, and then {b} {small}, in {small} ?",
}


def wanted(data: JsonObject) -> int:
    """The number that a task asks for."""
    per_big = FACTOR[data["big"]][1] // FACTOR[data["small"]][1]
    a, b, c = data["a"], data.get("b", 0), data.get("c", 1)
    if data["difficulty"] < 4:
        return (a * per_big + b) * c
    per_long = FACTOR[data["long"]][1] // FACTOR[data["short"]][1]
    return c * per_long * a * per_big + b
