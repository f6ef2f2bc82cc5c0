"""A small SQLite database: change rows, or write the result of a question into a table.

user: goods(name,price): set price of fig to 7
assistant: execute(sql=update goods set price=7 where name='fig')    tool: 1 row    assistant: done

Judged on the whole database: any statements that lead there count, a row or a table too much or too few
does not. The policy's SQL reaches neither files nor settings, and is cut off where it grows without end.
"""

import asyncio
import random
import sqlite3
import threading
from collections import Counter
from typing import Any

from pydantic import Field

from envs.builtin.words import PEOPLE, PLACES, THINGS
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

MAX_ROWS = 20
# Instructions of SQLite's machine that one statement may take, and the longest value it may make.
MAX_STEPS, MAX_BYTES, MAX_PAGES = 200_000, 4096, 500
_READ = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_WRITE = _READ | {
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_DROP_TABLE,
}
_SCHEMA = {
    1: {"goods": "name text, price int"},
    2: {"goods": "name text, price int, stock int"},
    3: {
        "people": "id int, name text, place text",
        "orders": "person int, thing text, price int",
        "result": "place text, total int",
    },
    4: {
        "people": "id int, name text, place text",
        "orders": "person int, thing text, price int",
        "result": "name text, total int",
    },
}
_ASK = {
    "set": "set price of {name} to {n}",
    "insert": "add {name} with price {n}",
    "delete": "delete {name}",
    "raise_below": "add {n} to the price of all with stock below {limit}",
    "delete_above": "delete all with price above {limit}",
    "sum_place": "write into result for each place the sum of its orders",
    "count_place": "write into result for each place with orders how many it has",
    "best_buyer": "write into result the {n} people with the highest sums of orders, and the sums",
    "no_orders": "delete the people without orders, and write into result the others and their sums",
}
KINDS = {
    1: ("set", "insert", "delete"),
    2: ("raise_below", "delete_above"),
    3: ("sum_place", "count_place"),
    4: ("best_buyer", "no_orders"),
}


class SqlConfig(EnvConfig):
    """1: one row. 2: rows under a condition. 3: a join and a sum. 4: sorted, or with a change too."""

    difficulty: int = Field(default=1, ge=1, le=4)


class Sql(Env):
    """Change a SQLite database as asked; judged on all its tables."""

    name = "sql"
    reward_names = ("solved",)
    config_type = SqlConfig
    config: SqlConfig
    difficulties = 4
    db: sqlite3.Connection | None = None

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        kind = rng.choice(KINDS[level])
        data = {"difficulty": level, "kind": kind}
        return data | (_sample_goods(rng, level, kind) if level < 3 else _sample_orders(rng))

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.in_use = threading.Lock()
        schema = _SCHEMA[task.data["difficulty"]]
        self.db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        # What was written need not be UTF-8: `cast(x'ff' as text)`.
        self.db.text_factory = _decoded
        self.db.execute(f"pragma max_page_count = {MAX_PAGES}")
        self.db.execute("pragma temp_store = memory")
        for name, columns in schema.items():
            self.db.execute(f"create table {name} ({columns})")
            for row in task.data["tables"].get(name, []):
                self.db.execute(f"insert into {name} values ({','.join('?' * len(row))})", row)
        self.before = self._schema()
        self.db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
        told = " ".join(
            f"{name}({','.join(column.split()[0] for column in columns.split(', '))})"
            for name, columns in schema.items()
        )
        ask = _ASK[task.data["kind"]].format(**task.data["words"])
        return [Message("user", f"{told}: {ask}")]

    # Plain functions: SQLite blocks, so they run in a thread of their own.
    @tool(read_only=True)
    def query(self, sql: str) -> str:
        """rows of a select"""
        rows, _ = self._run(sql, _READ)
        lines = [" ".join(map(str, row)) for row in rows[:MAX_ROWS]]
        return "\n".join([*lines, "..."] if len(rows) > MAX_ROWS else lines) or "no rows"

    @tool
    def execute(self, sql: str) -> str:
        """change rows"""
        _, changed = self._run(sql, _WRITE)
        return f"{max(changed, 0)} rows"

    def _run(self, sql: str, allowed: set[int]) -> tuple[list[tuple[Any, ...]], int]:
        assert self.db is not None, "reset() opens the database"

        def authorize(action: int, *_: str | None) -> int:
            return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY

        with self.in_use:
            self.db.set_authorizer(authorize)
            # Called once after so many steps: a statement that is still running then is ended.
            self.db.set_progress_handler(lambda: 1, MAX_STEPS)
            try:
                cursor = self.db.execute(sql)
                return cursor.fetchmany(MAX_ROWS + 1), cursor.rowcount
            except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
                raise ToolError(str(error)) from None
            finally:
                self.db.set_authorizer(None)
                self.db.set_progress_handler(None, 0)

    def _schema(self) -> list[tuple[str, str]]:
        """Name and definition of all that the database has."""
        assert self.db is not None, "reset() opens the database"
        return self.db.execute("select name, sql from sqlite_master order by name").fetchall()

    async def score(self) -> dict[str, float]:
        assert self.db is not None, "reset() opens the database"
        if self.answer is None or self._schema() != self.before:
            return {"solved": 0.0}
        right = all(
            Counter(self.db.execute(f"select * from {name}")) == Counter(rows)
            for name, rows in wanted(self.task).items()
        )
        return {"solved": float(right)}

    async def close(self) -> None:
        if self.db is not None:
            await asyncio.to_thread(self._close, self.db)

    def _close(self, db: sqlite3.Connection) -> None:
        """A call that a deadline cut off may still run in its thread: closing under it ends the process."""
        with self.in_use:
            db.close()

    def expert(self, task: Task) -> Expert:
        for statement in _STATEMENTS[task.data["kind"]]:
            yield call("execute", sql=statement.format(**task.data["words"]))
        yield say("done")


# The expert's way, in SQL; `wanted` says the same in Python, and the two check each other.
_SUMS = "select {0}, {1} from orders join people on person = id group by {0}"
_STATEMENTS = {
    "set": ["update goods set price={n} where name='{name}'"],
    "insert": ["insert into goods values('{name}',{n})"],
    "delete": ["delete from goods where name='{name}'"],
    "raise_below": ["update goods set price=price+{n} where stock<{limit}"],
    "delete_above": ["delete from goods where price>{limit}"],
    "sum_place": ["insert into result " + _SUMS.format("place", "sum(price)")],
    "count_place": ["insert into result " + _SUMS.format("place", "count(*)")],
    "best_buyer": [
        "insert into result " + _SUMS.format("name", "sum(price)") + " order by 2 desc limit {n}"
    ],
    "no_orders": [
        "delete from people where id not in (select person from orders)",
        "insert into result " + _SUMS.format("name", "sum(price)"),
    ],
}


def _decoded(text: bytes) -> str:
    return text.decode(errors="replace")


def _sample_goods(rng: random.Random, level: int, kind: str) -> JsonObject:
    """Words under which the rows change: another value than now, a limit that some row passes."""
    *names, new = rng.sample(THINGS, 7)
    rows: list[list[Any]] = [[name, rng.randint(2, 99), rng.randint(0, 98)] for name in names]
    row = rng.choice(rows)
    words: JsonObject = {"n": rng.choice([n for n in range(2, 100) if n != row[1]])}
    if level == 1:
        words["name"] = new if kind == "insert" else row[0]
        rows = [row[:2] for row in rows]
    else:
        words["limit"] = row[1] - 1 if kind == "delete_above" else row[2] + 1
    return {"tables": {"goods": rows}, "words": words}


def _sample_orders(rng: random.Random) -> JsonObject:
    """Orders of five of seven people, whose sums all differ, so that the best are certain."""
    places = rng.sample(PLACES, 3)
    ids = rng.sample(range(10, 100), 7)
    people = [
        [n, name, rng.choice(places)] for n, name in zip(ids, rng.sample(PEOPLE, 7), strict=True)
    ]
    orders: list[list[Any]] = []
    sums: Counter[int] = Counter()
    while len(set(sums.values())) < 5:
        orders = [[n, rng.choice(THINGS), rng.randint(1, 99)] for n in ids[2:] * 2]
        sums = Counter()
        for person, _, price in orders:
            sums[person] += price
    return {"tables": {"people": people, "orders": orders}, "words": {"n": rng.randint(1, 3)}}


def wanted(data: JsonObject) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table that a task asks for."""
    kind, words = data["kind"], data["words"]
    tables = {name: [tuple(row) for row in rows] for name, rows in data["tables"].items()}
    if "goods" in tables:
        return {"goods": _wanted_goods(tables["goods"], kind, words)}
    by = 2 if kind.endswith("place") else 1
    key = {row[0]: row[by] for row in tables["people"]}
    sums: Counter[str] = Counter()
    for person, _, price in tables["orders"]:
        sums[key[person]] += 1 if kind == "count_place" else price
    if kind == "no_orders":
        tables["people"] = [row for row in tables["people"] if row[1] in sums]
    tables["result"] = sums.most_common(words["n"] if kind == "best_buyer" else None)
    return tables


def _wanted_goods(
    rows: list[tuple[Any, ...]], kind: str, words: JsonObject
) -> list[tuple[Any, ...]]:
    n, name, limit = words["n"], words.get("name"), words.get("limit")
    match kind:
        case "set":
            return [(row[0], n) if row[0] == name else row for row in rows]
        case "insert":
            return [*rows, (name, n)]
        case "delete":
            return [row for row in rows if row[0] != name]
        case "delete_above":
            return [row for row in rows if row[1] <= limit]
        case _:
            return [(thing, p + n if stock < limit else p, stock) for thing, p, stock in rows]
