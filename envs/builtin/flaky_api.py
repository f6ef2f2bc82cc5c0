"""A shop's API with rate limits, lost replies, pages and idempotency keys; judged on the orders it has.

user: order 3 fig     assistant: order(item=fig, count=3, key=fig)     tool: error: 503
assistant: order(item=fig, count=3, key=fig)    tool: order 7: 3 fig   assistant: done

A 503 does not say whether the order was placed. The same key again never places a second one, and another key
does. How often and how an item's order fails is part of the task; waiting costs no real time.
"""

import random
from collections import Counter
from collections.abc import Generator

from pydantic import Field

from envs.builtin.words import THINGS
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

PAGE = 4
FAILURES = ("busy", "lost")


class FlakyApiConfig(EnvConfig):
    """1: one order. 2: its number is on a later page. 3: two orders, and a rate limit. 4: three, stricter."""

    difficulty: int = Field(default=1, ge=1, le=4)


class FlakyApi(Env):
    """Order goods over an API that fails, each order once."""

    name = "flaky_api"
    reward_names = ("solved",)
    config_type = FlakyApiConfig
    config: FlakyApiConfig
    difficulties = 4

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        things = rng.sample(THINGS, 4 if level == 1 else 4 * level)
        goods = {n: n for n in things}
        if level > 1:
            goods = {
                n: str(k)
                for n, k in zip(things, rng.sample(range(10, 100), len(things)), strict=True)
            }
        names = rng.sample(things, max(1, level - 1))
        return {
            "difficulty": level,
            "goods": goods,
            "orders": {name: rng.randint(1, 9) for name in names},
            "failures": {
                goods[name]: [
                    rng.choice(FAILURES) for _ in range(rng.randint(0, 2 if level < 4 else 3))
                ]
                for name in names
            },
            "busy_pages": [rng.randint(0, 1) for _ in range(0, len(things), PAGE)]
            if level > 1
            else [],
            # So many requests, then none before `wait`.
            "limit": {1: 0, 2: 0, 3: 4, 4: 3}[level],
            "pause": rng.randint(2, 9),
        }

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.placed: dict[str, tuple[str, int]] = {}
        self.tries: Counter[str] = Counter()
        self.requests = 0
        wishes = ", ".join(f"{count} {name}" for name, count in task.data["orders"].items())
        return [Message("user", f"order {wishes}")]

    def _request(self) -> None:
        """Every request counts, whatever becomes of it, but not the refused ones."""
        limit = self.task["limit"]
        if limit and self.requests >= limit:
            raise ToolError(f"429 wait {self.task['pause']}")
        self.requests += 1

    @tool(read_only=True)
    async def goods(self, page: int) -> str:
        """goods and their numbers"""
        self._request()
        rows = [f"{name} {number}" for name, number in self.task["goods"].items()]
        pages = -(-len(rows) // PAGE)
        if not 1 <= page <= pages:
            raise ToolError(f"404 pages are 1 to {pages}")
        self.tries[f"page {page}"] += 1
        busy = self.task["busy_pages"]
        if busy and self.tries[f"page {page}"] <= busy[page - 1]:
            raise ToolError("503")
        more = f"; next {page + 1}" if page < pages else ""
        return "; ".join(rows[(page - 1) * PAGE : page * PAGE]) + more

    @tool
    async def order(self, item: str, count: int, key: str) -> str:
        """order, once per key"""
        self._request()
        if item not in self.task["goods"].values():
            raise ToolError(f"404 no item {item!r}")
        if not 1 <= count <= 99:
            raise ToolError("400 count has to be 1 to 99")
        if self.placed.get(key, (item, count)) != (item, count):
            raise ToolError("409 this key had another order")
        planned = self.task["failures"].get(item, [])
        failure = planned[self.tries[item]] if self.tries[item] < len(planned) else ""
        self.tries[item] += 1
        if failure != "busy":
            self.placed[key] = (item, count)
        if failure:
            raise ToolError("503")
        return f"ordered {count} {item}"

    @tool
    async def wait(self, seconds: int) -> str:
        """let time pass"""
        if seconds < self.task["pause"]:
            raise ToolError(f"wait {self.task['pause']}")
        self.requests = 0
        return "ok"

    async def score(self) -> dict[str, float]:
        goods, orders = self.task["goods"], self.task["orders"]
        wanted = Counter((goods[name], count) for name, count in orders.items())
        found = Counter(self.placed.values())
        return {"solved": float(self.answer is not None and found == wanted)}

    def expert(self, task: Task) -> Expert:
        orders: dict[str, int] = dict(task.data["orders"])
        items = {name: name for name in orders} if task.data["difficulty"] == 1 else {}
        page = 1
        while items.keys() < orders.keys():
            listed = yield from _until_it_works(call("goods", page=page))
            rows = [row.split() for row in listed.split("; ")]
            items |= {name: number for name, number in rows if name in orders}
            page += 1
        for name, count in orders.items():
            yield from _until_it_works(call("order", item=items[name], count=count, key=name))
        yield say("done")


def _until_it_works(request: Message) -> Generator[Message, list[str], str]:
    """Make a request again after a 503, with the same key, and after a pause where it was too early."""
    while True:
        result = (yield request)[0]
        if not result.startswith("error: "):
            return result
        if result.startswith("error: 429"):
            yield call("wait", seconds=int(result.split()[-1]))
