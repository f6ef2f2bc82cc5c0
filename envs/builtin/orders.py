"""A shop's order desk over a real SQLite database: two dependent calls, judged on the final rows.

user: cancel the order of mira     assistant: find(customer=mira)      tool: 731
assistant: set_status(order=731, status=cancelled)      tool: ok      assistant: done
"""

import random
import sqlite3
from typing import Any

from envs.env import Env, Expert, Task, call, say
from envs.message import Message
from envs.tool import ToolError, tool

CUSTOMERS = (
    "ada", "ben", "cleo", "dora", "eli", "finn", "gina", "hugo", "iris", "jack", "kira", "leo",
    "mira", "nico", "olga", "paul", "rosa", "sam", "tina", "zoe",
)  # fmt: skip
STATUS = {"cancel": "cancelled", "ship": "shipped", "refund": "refunded", "hold": "held"}


class Orders(Env):
    """Change the status of one customer's order; every other row has to stay as it was."""

    name = "orders"
    db: sqlite3.Connection | None = None

    def sample(self, rng: random.Random) -> dict[str, Any]:
        customers = rng.sample(CUSTOMERS, 4)
        rows = dict(zip(customers, rng.sample(range(100, 1000), 4), strict=True))
        return {"verb": rng.choice(sorted(STATUS)), "customer": rng.choice(customers), "rows": rows}

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.db = sqlite3.connect(":memory:", check_same_thread=False)
        self.db.execute("create table orders (id integer primary key, customer text, status text)")
        rows = [(number, name, "open") for name, number in task.data["rows"].items()]
        self.db.executemany("insert into orders values (?, ?, ?)", rows)
        return [Message("user", "{verb} the order of {customer}".format(**task.data))]

    def rows(self) -> list[tuple[Any, ...]]:
        assert self.db is not None, "reset() opens the database"
        return self.db.execute(
            "select customer, id, status from orders order by customer"
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
        target, status = self.task["customer"], STATUS[self.task["verb"]]
        wanted = [
            (name, number, status if name == target else "open")
            for name, number in sorted(self.task["rows"].items())
        ]
        return {"solved": float(self.answer is not None and self.rows() == wanted)}

    async def close(self) -> None:
        if self.db is not None:
            self.db.close()

    def expert(self, task: Task) -> Expert:
        number = (yield call("find", customer=task.data["customer"]))[0]
        yield call("set_status", order=number, status=STATUS[task.data["verb"]])
        yield say("done")
