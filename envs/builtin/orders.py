"""A shop's order desk over a real SQLite database: dependent calls, judged on the final rows.

user: cancel the order of mira     assistant: find(customer=mira)      tool: 731
assistant: set_status(order=731, status=cancelled)      tool: ok      assistant: done

Harder tasks name two customers, and then all the orders that each has. With `user`, the last customer is not
named, and the user tells who it is when they are asked.
"""

import random
import sqlite3
from typing import Any

from pydantic import Field

from envs.builtin.words import PEOPLE
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool
from envs.user import Fact

STATUS = {"cancel": "cancelled", "ship": "shipped", "refund": "refunded", "hold": "held"}


class OrdersConfig(EnvConfig):
    """1: the order of one customer. 2: of two. 3: all orders of two.

    user: there is one, who names the last customer only when asked.
    """

    difficulty: int = Field(default=1, ge=1, le=3)
    user: bool = False


class Orders(Env):
    """Change the status of customers' orders; every other row has to stay as it was."""

    name = "orders"
    reward_names = ("solved",)
    config_type = OrdersConfig
    config: OrdersConfig
    difficulties = 3
    db: sqlite3.Connection | None = None

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        self.has_user = self.config.user

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        customers = rng.sample(PEOPLE, 4)
        if level == 1:
            rows = dict(zip(customers, rng.sample(range(100, 1000), 4), strict=True))
            verb = rng.choice(sorted(STATUS))
            return {"verb": verb, "customer": rng.choice(customers), "rows": rows}
        verbs = [rng.choice(sorted(STATUS)) for _ in range(2)]
        orders = [name for name in customers for _ in range(1 if level == 2 else rng.randint(1, 3))]
        numbers = rng.sample(range(100, 1000), len(orders))
        return {
            "difficulty": level,
            "acts": [list(act) for act in zip(verbs, rng.sample(customers, 2), strict=True)],
            "orders": [list(order) for order in zip(numbers, orders, strict=True)],
        }

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.db = sqlite3.connect(":memory:", check_same_thread=False)
        self.db.execute("create table orders (id integer primary key, customer text, status text)")
        rows = [(number, name, "open") for number, name in _orders(task.data)]
        self.db.executemany("insert into orders values (?, ?, ?)", rows)
        which = "all orders" if task.data.get("difficulty", 1) == 3 else "the order"
        asked = [[verb, which, "of", customer] for verb, customer in _acts(task.data)]
        if not self.has_user:
            return [Message("user", " and ".join(map(" ".join, asked)))]
        facts = [Fact("customer", asked[-1].pop(), ("who", "whom", "whose", "name"))]
        asked[-1].append("a customer" if len(asked) == 1 else "another customer")
        return [(await self.user.open(" and ".join(map(" ".join, asked)), facts)).message]

    def rows(self) -> list[tuple[Any, ...]]:
        assert self.db is not None, "reset() opens the database"
        return self.db.execute(
            "select customer, id, status from orders order by customer, id"
        ).fetchall()

    @tool(read_only=True)
    async def find(self, customer: str) -> str:
        """the order number of a customer"""
        found = [row[1] for row in self.rows() if row[0] == customer]
        if not found:
            raise ToolError(f"no order of {customer!r}")
        return " ".join(str(number) for number in found)

    @tool
    async def set_status(self, order: int, status: str) -> str:
        """set the status of an order"""
        assert self.db is not None, "reset() opens the database"
        if status not in STATUS.values():
            raise ToolError(f"no status {status!r}")
        if order not in [row[1] for row in self.rows()]:
            raise ToolError(f"no order {order}")
        self.db.execute("update orders set status = ? where id = ?", (status, order))
        return "ok"

    async def score(self) -> dict[str, float]:
        status = {customer: STATUS[verb] for verb, customer in _acts(self.task)}
        wanted = sorted(
            (name, number, status.get(name, "open")) for number, name in _orders(self.task)
        )
        return {"solved": float(self.answer is not None and self.rows() == wanted)}

    async def close(self) -> None:
        if self.db is not None:
            self.db.close()

    def expert(self, task: Task) -> Expert:
        acts = _acts(task.data)
        if self.has_user:
            said = ""
            while said not in PEOPLE:  # until the question is put that was meant
                said = (yield say("which customer?"))[0]
            acts = [*acts[:-1], [acts[-1][0], said]]
        for verb, customer in acts:
            found = (yield call("find", customer=customer))[0]
            for number in found.split():
                yield call("set_status", order=number, status=STATUS[verb])
        yield say("done")


def _acts(data: JsonObject) -> list[list[str]]:
    """(verb, customer) of all that is asked; a task of difficulty 1 holds its only one itself."""
    return data["acts"] if "acts" in data else [[data["verb"], data["customer"]]]


def _orders(data: JsonObject) -> list[list[Any]]:
    """(number, customer) of all orders; in a task of difficulty 1 every customer has one."""
    if "orders" in data:
        return data["orders"]
    return [[number, name] for name, number in data["rows"].items()]
