"""A world: a domain's rows in one SQLite database in memory, and its tools at work on them.

In: calls by name and arguments. Out: plain data for the policy, or `Refused` with one sentence; and, for the
judge, which rows are not as they were (`before`), which calls were confirmed (`acts`) and what was granted. A
call that is refused changes nothing. `mark` and `rewind` let a planner look ahead. What it leaves out:
transactions over several calls, and more than one agent."""

import operator
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import cast

from envs.generated.books import BUSY, NO_ROW, Arguments, Books, Fact, Key, Later, Refused, Rows
from envs.generated.domain import Domain, DomainTool, Entity, Field, Row
from envs.generated.expression import (
    Combined,
    Constant,
    Count,
    Effect,
    Expression,
    Need,
    New,
    Now,
    Path,
    Remove,
    Set,
    SetEach,
    Value,
    Where,
)

PAGE = 5
MOST_LETTERS = 400
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class World:
    """One episode's world. `facts` are the answers that the user gives who is asked."""

    def __init__(
        self,
        domain: Domain,
        rows: Rows,
        *,
        faults: Mapping[str, int] | None = None,
        facts: Mapping[str, Value] | None = None,
    ) -> None:
        """faults: how often an act's first calls find it busy."""
        self.domain = domain
        self.facts = dict(facts or {})
        self.books = Books(faults=Counter(faults or {}))
        self.reads: set[Fact] = set()
        self.writes: set[Fact] = set()
        self.db = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, cached_statements=0
        )
        self.db.execute("pragma page_size = 512")
        for name, entity in domain.entities.items():
            columns = ", ".join(f'"{one}"' for one in entity.fields)
            self.db.execute(f'create table "{name}" (id text primary key, {columns}) without rowid')
            marks = ", ".join("?" for _ in range(len(entity.fields) + 1))
            values = [(row["id"], *(row[one] for one in entity.fields)) for row in rows[name]]
            self.db.executemany(f'insert into "{name}" values ({marks})', values)

    def close(self) -> None:
        """Give the database back; may be called again."""
        self.db.close()

    def mark(self) -> Books:
        """Remember the present; `rewind` with what is returned comes back to it."""
        self.db.execute("savepoint here")
        return replace(
            self.books, before=dict(self.books.before), faults=Counter(self.books.faults)
        )

    def rewind(self, books: Books) -> None:
        """Come back to the last `mark`, which is gone then."""
        self.db.execute("rollback to here")
        self.db.execute("release here")
        self.books = books

    def rows(self, entity: str) -> list[Row]:
        """All rows of an entity, by id."""
        found = self.db.execute(f'select * from "{entity}" order by id').fetchall()
        names = ("id", *self.domain.entities[entity].fields)
        return [dict(zip(names, row, strict=True)) for row in found]

    def row(self, entity: str, id: object) -> Row | None:
        """One row, None where there is none."""
        found = self.db.execute(f'select * from "{entity}" where id = ?', (id,)).fetchone()
        names = ("id", *self.domain.entities[entity].fields)
        return None if found is None else dict(zip(names, found, strict=True))

    def call(self, name: str, arguments: Arguments) -> dict[str, object]:
        """Carry out a call; what it reads and writes is added to `reads` and `writes`. Raises Refused."""
        tool = self.domain.tools.get(name)
        if tool is None:
            raise Refused(f"there is no tool {name!r}")
        args = self._arguments(tool, arguments)
        match tool.kind:
            case "find" | "get" | "list":
                return self._read(tool, args)
            case "ask":
                return self._ask(str(args["about"]))
            case "wait":
                return self._wait(cast(int, args["hours"]))
            case "access":
                permission = str(args["permission"])
                self.writes.add(("permission", permission, ""))
                self.books = replace(self.books, granted=self.books.granted | {permission})
                return {"ok": True}
            case "confirm":
                asked = (str(args["tool"]), str(args["id"]))
                self.writes.add(("confirmation", *asked))
                self.books = replace(self.books, confirmed=self.books.confirmed | {asked})
                return {"confirmed": True}
            case "act":
                return self._act(tool, args)

    def settle(self) -> None:
        """Let everything happen that is still to come."""
        if self.books.later:
            self._pass_to(max(one.due for one in self.books.later))

    def place(self, entity: str, id: str, name: str, value: Value) -> None:
        """Make a field of a row have always been so: for whoever builds the world."""
        self.db.execute(f'update "{entity}" set "{name}" = ? where id = ?', (value, id))

    def value(self, tool: DomainTool, one: Expression, args: Arguments) -> Value:
        """Evaluate an expression for a call. Raises Refused where a reference on the way is empty."""
        match one:
            case Constant():
                return one.value
            case Now():
                return self.books.hour
            case Combined():
                left = self._number(tool, one.left, args)
                right = self._number(tool, one.right, args)
                return {"+": left + right, "-": left - right, "*": left * right}[one.operation]
            case Path():
                holder, name = self.place_of(tool, one, args)
                if not name:
                    return cast(Value, args[one.parts[0]])
                self.reads.add((*holder, name))
                row = self.row(*holder)
                assert row is not None, "place_of looks for it"
                return row[name]

    def place_of(self, tool: DomainTool, path: Path, args: Arguments) -> tuple[Key, str]:
        """The row and the field that a path ends at; no field for an argument alone. Raises Refused."""
        id = cast(Value, args[path.parts[0]])
        entity = tool.args[path.parts[0]].entity
        for i, name in enumerate(path.parts[1:], start=1):
            row = self.row(entity, id)
            if row is None:
                raise Refused(f"{'.'.join(path.parts[:i])} is nothing")
            if i == len(path.parts) - 1:
                return (entity, str(id)), name
            self.reads.add((entity, str(id), name))
            id, entity = row[name], self.domain.entities[entity].fields[name].entity
        return (entity, str(id)), ""

    def check(self, tool: DomainTool, need: Need, args: Arguments) -> tuple[bool, Value, Value]:
        """True if a need is met, and the two values that it compares. Raises Refused."""
        if isinstance(need.left, Count):
            left: Value = len(self._matching(tool, need.left.entity, need.left.where, args))
        else:
            left = self.value(tool, need.left, args)
        right = self.value(tool, need.right, args)
        if need.comparison in ("=", "!="):
            return (left == right) == (need.comparison == "="), left, right
        if not isinstance(left, int) or not isinstance(right, int):
            return False, left, right
        return _COMPARE[need.comparison](left, right), left, right

    def _number(self, tool: DomainTool, one: Expression, args: Arguments) -> int:
        value = self.value(tool, one, args)
        return value if isinstance(value, int) else 0

    def _arguments(self, tool: DomainTool, given: Arguments) -> dict[str, object]:
        """The arguments, each checked. Raises Refused."""
        if unknown := [name for name in given if name not in tool.args]:
            raise Refused(f"{tool.name} has no argument {unknown[0]!r}")
        args: dict[str, object] = {}
        for name, spec in tool.args.items():
            value = given.get(name)
            if value is None and not spec.optional:
                raise Refused(f"argument {name}: it is missing")
            if spec.many:
                ids = cast("list[object]", value) if isinstance(value, list) else [value]
                args[name] = [self._checked(spec, one) for one in ids]
                if not ids:
                    raise Refused(f"argument {name}: it is empty")
            else:
                args[name] = None if value is None else self._checked(spec, value)
        return args

    def _checked(self, spec: Field, value: object) -> Value:
        if spec.kind == "int":
            if isinstance(value, bool) or not isinstance(value, int):
                raise Refused(f"argument {spec.name}: it has to be a whole number")
            if not spec.low <= value <= spec.high:
                raise Refused(f"argument {spec.name}: it has to be {spec.low} to {spec.high}")
            return value
        if not isinstance(value, str) or not value or len(value) > MOST_LETTERS:
            raise Refused(
                f"argument {spec.name}: it has to be a text, of {MOST_LETTERS} letters at most"
            )
        if spec.kind == "choice" and value not in spec.choices:
            raise Refused(f"argument {spec.name}: it has to be one of {', '.join(spec.choices)}")
        if spec.kind == "ref" and self.row(spec.entity, value) is None:
            raise Refused(f"404 there is no {spec.entity} {value!r}")
        return value

    def _read(self, tool: DomainTool, args: Mapping[str, object]) -> dict[str, object]:
        entity = self.domain.entities[tool.entity]
        if tool.kind == "get":
            row = self.row(entity.name, args[entity.name])
            assert row is not None, "the argument was checked"
            self._note_read(entity, [row], tuple(row))
            return dict(row)
        if tool.kind == "find":
            label = entity.label
            found = [row for row in self.rows(entity.name) if row[label] == args[label]]
            if not found:
                raise Refused(f"404 there is no {entity.name} called {args[label]!r}")
            self._note_read(entity, found, (label,))
            return {"id": found[0]["id"]}
        asked = {k: v for k, v in args.items() if k != "page" and v is not None}
        rows = [r for r in self.rows(entity.name) if all(r[k] == v for k, v in asked.items())]
        pages = max(1, -(-len(rows) // PAGE))
        page = cast(int, args["page"])
        if page > pages:
            raise Refused(f"404 there are {pages} pages")
        shown = shown_fields(entity)
        part = rows[(page - 1) * PAGE : page * PAGE]
        self._note_read(entity, part, (*entity.by, *asked))
        listed = [{name: row[name] for name in shown} for row in part]
        return {"page": page, "pages": pages, "rows": listed}

    def _note_read(self, entity: Entity, rows: list[Row], names: tuple[str, ...]) -> None:
        self.reads |= {(entity.name, str(row["id"]), name) for row in rows for name in ("", *names)}

    def _ask(self, about: str) -> dict[str, object]:
        asked = about.lower().replace("_", " ")
        for key, value in self.facts.items():
            if all(word in asked for word in key.split()):
                return {"about": key, "answer": value}
        return {"answer": "I have said all that I know about it."}

    def _wait(self, hours: int) -> dict[str, object]:
        self._pass_to(self.books.hour + hours)
        return {"hour": self.books.hour}

    def _pass_to(self, hour: int) -> None:
        due = sorted((one for one in self.books.later if one.due <= hour), key=lambda one: one.due)
        rest = tuple(one for one in self.books.later if one.due > hour)
        self.books = replace(self.books, hour=max(hour, self.books.hour), later=rest)
        for one in due:
            with suppress(Refused):  # a name that was taken meanwhile
                if self.row(*one.key) is not None:
                    self._set(one.key, one.field, one.value)

    def _act(self, tool: DomainTool, args: dict[str, object]) -> dict[str, object]:
        if tool.permission:
            self.reads.add(("permission", tool.permission, ""))
            if tool.permission not in self.books.granted:
                raise Refused(
                    f"403 {tool.name} needs the permission {tool.permission}",
                    permission=tool.permission,
                )
        many = next((name for name, spec in tool.args.items() if spec.many), "")
        busy = self.books.faults[tool.name] > 0
        if busy:
            self.books.faults[tool.name] -= 1
            if not many:
                return {"error": BUSY}
        if not many:
            return {"ok": True, **self._once(tool, args)}
        ids = cast("list[Value]", args[many])
        able = len(ids) // 2 if busy else len(ids)
        not_done: dict[str, str] = {str(one): BUSY for one in ids[able:]}
        done: list[Value] = []
        for one in ids[:able]:
            try:
                self._once(tool, {**args, many: one})
                done.append(one)
            except Refused as error:
                not_done[str(one)] = str(error)
        if not done and not busy:
            raise Refused(next(iter(not_done.values())))
        return {"done": done, "not_done": not_done}

    def _once(self, tool: DomainTool, args: dict[str, object]) -> dict[str, object]:
        for need in tool.needs:
            met, left, _ = self.check(tool, need, args)
            if not met:
                raise Refused(f"409 it needs {need.text}, and there it is {left}", need=need)
        books = self.mark()
        try:
            made = [self._change(tool, effect, args) for effect in tool.effects]
        except Refused:
            self.rewind(books)
            raise
        self.db.execute("release here")
        if tool.confirm:
            subject = str(args[tool.subject]) if tool.subject else NO_ROW
            asked = (tool.name, subject)
            self.reads.add(("confirmation", *asked))
            self.books = replace(
                self.books,
                acts=(*self.books.acts, (*asked, asked in self.books.confirmed)),
                confirmed=self.books.confirmed - {asked},
            )
        return {entity: id for one in made for entity, id in one.items()}

    def _change(
        self, tool: DomainTool, effect: Effect, args: dict[str, object]
    ) -> dict[str, object]:
        match effect:
            case Set():
                key, name = self.place_of(tool, effect.path, args)
                value = self.value(tool, effect.value, args)
                if effect.after:
                    self._fits(key, self.domain.entities[key[0]].fields[name], value)
                    self.writes.add((*key, name))
                    due = self.books.hour + effect.after
                    later = (*self.books.later, Later(due, key, name, value))
                    self.books = replace(self.books, later=later)
                else:
                    self._set(key, name, value)
            case SetEach():
                value = self.value(tool, effect.value, args)
                for row in self._matching(tool, effect.entity, effect.where, args):
                    self._set((effect.entity, str(row["id"])), effect.field, value)
            case New():
                values = {name: self.value(tool, one, args) for name, one in effect.fields}
                return {effect.entity: self._insert(effect.entity, values)}
            case Remove():
                self._remove((tool.args[effect.argument].entity, str(args[effect.argument])))
        return {}

    def _matching(self, tool: DomainTool, entity: str, where: Where, args: Arguments) -> list[Row]:
        asked = {name: self.value(tool, one, args) for name, one in where}
        self.reads.add((entity, "", ""))
        self.reads |= {(entity, "", name) for name in asked}
        return [r for r in self.rows(entity) if all(r[k] == v for k, v in asked.items())]

    def _set(self, key: Key, name: str, value: Value) -> None:
        self._fits(key, self.domain.entities[key[0]].fields[name], value)
        self._remember(key)
        self.writes.add((*key, name))
        self.db.execute(f'update "{key[0]}" set "{name}" = ? where id = ?', (value, key[1]))

    def _insert(self, name: str, values: Row) -> str:
        entity = self.domain.entities[name]
        id = f"{entity.prefix}{self.books.made}"
        self.books = replace(self.books, made=self.books.made + 1)
        row = [values.get(key, spec.default) for key, spec in entity.fields.items()]
        for spec, value in zip(entity.fields.values(), row, strict=True):
            self._fits((name, id), spec, value)
        self._remember((name, id))
        self.writes.add((name, id, ""))
        marks = ", ".join("?" for _ in range(len(row) + 1))
        self.db.execute(f'insert into "{name}" values ({marks})', (id, *row))
        return id

    def _remove(self, key: Key) -> None:
        for other in self.domain.entities.values():
            for spec in other.fields.values():
                if spec.kind != "ref" or spec.entity != key[0]:
                    continue
                self.reads.add((other.name, "", spec.name))
                if any(row[spec.name] == key[1] for row in self.rows(other.name)):
                    raise Refused(f"409 a {other.name} still refers to {key[1]}")
        self._remember(key)
        self.writes.add((*key, ""))
        self.db.execute(f'delete from "{key[0]}" where id = ?', (key[1],))

    def _fits(self, key: Key, spec: Field, value: Value) -> None:
        """Constraints of a field: bounds of a number, one row per label. Raises Refused."""
        if spec.kind == "int" and isinstance(value, int) and not spec.low <= value <= spec.high:
            raise Refused(f"409 {spec.name} has to stay between {spec.low} and {spec.high}")
        if spec.kind == "label" and any(
            row[spec.name] == value and row["id"] != key[1] for row in self.rows(key[0])
        ):
            raise Refused(f"409 there is a {key[0]} called {value!r} already")

    def _remember(self, key: Key) -> None:
        if key not in self.books.before:
            self.books.before[key] = self.row(*key)


def shown_fields(entity: Entity) -> list[str]:
    """The fields that a list shows: the id, what tells rows apart, references and choices."""
    told = [k for k, f in entity.fields.items() if k in entity.by or f.kind in ("ref", "choice")]
    return ["id", *told]
