"""A second solver: plans from a domain's schema and the state that is wanted, and has never seen the chain.

In: a fresh world and the difference that is to be reached, as sentences and as the rows they speak of. It
reads which tools make, change or remove such rows, takes the arguments from the values wanted, tries each
call on the world, and, where a need is in the way, first looks for a call that meets it. A call is kept where
it brings the difference nearer, or meets the need. Bounded: it gives up after `budget` calls, and the task
counts as hard."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, cast

from envs.generated.books import BUSY, NO_ROW, Key, Refused
from envs.generated.domain import Domain, DomainTool, Row
from envs.generated.expression import (
    Combined,
    Constant,
    Count,
    Expression,
    New,
    Path,
    Remove,
    Set,
    SetEach,
    Value,
    paths,
)
from envs.generated.rubric import difference
from envs.generated.world import World
from envs.message import JsonObject

MOST_ROWS_TRIED, MOST_BINDINGS, DEPTH = 12, 24, 3
MOST_BUSY = 4


@dataclass(frozen=True)
class Wanted:
    """A state to reach. sentences: `rubric.difference` of it. changed: fields of old rows, with their values.
    created: new rows. removed: old rows that are gone. values: numbers and words that occur in it."""

    sentences: tuple[str, ...]
    changed: dict[tuple[Key, str], Value]
    created: tuple[tuple[str, Row], ...]
    removed: tuple[Key, ...]


def wanted_of(world: World) -> Wanted:
    """The state that a world is in, as a goal for another one."""
    sentences = difference(world)
    changed: dict[tuple[Key, str], Value] = {}
    created: list[tuple[str, Row]] = []
    removed: list[Key] = []
    for key, before in world.books.before.items():
        now = world.row(*key)
        if now is None:
            removed += [key] if before is not None else []
        elif before is None:
            created.append((key[0], now))
        else:
            changed |= {(key, name): v for name, v in now.items() if v != before[name]}
    return Wanted(sentences, changed, tuple(created), tuple(removed))


class Planner:
    """Looks for calls that bring a world to what is wanted."""

    def __init__(self, world: World, wanted: Wanted, budget: int = 300) -> None:
        self.world = world
        self.domain: Domain = world.domain
        self.wanted = wanted
        self.budget = budget
        self.plan: list[tuple[str, JsonObject]] = []

    def solve(self) -> bool:
        """True if a plan was found; the calls are in `plan`. Calls that work as they are come before those
        that something has to be done for first."""
        while (distance := self._distance()) > 0:
            if not any(self._nearer(distance, depth) for depth in range(DEPTH + 1)):
                return False
        return True

    def _distance(self) -> int:
        books = self.world.mark()
        now = difference(self.world)
        self.world.rewind(books)
        rest = list(self.wanted.sentences)
        extra = 0
        for one in now:
            if one in rest:
                rest.remove(one)
            else:
                extra += 1
        return len(rest) + extra

    def _nearer(self, distance: int, depth: int) -> bool:
        """Make one call, after what it needs, by which less is missing than before."""
        tried: set[str] = set()
        for tool, args in self._relevant():
            if self.budget <= 0:
                return False
            if (key := f"{tool.name} {args}") in tried:
                continue
            tried.add(key)
            books, length = self.world.mark(), len(self.plan)
            if self._make(tool, args, depth) and self._distance() < distance:
                self.world.db.execute("release here")
                return True
            self.world.rewind(books)
            del self.plan[length:]
        return False

    def _make(self, tool: DomainTool, args: JsonObject, depth: int) -> bool:
        """Make a call, with permission, confirmation and what its needs ask for before it."""
        for _ in range(4):
            if self.budget <= 0:
                return False
            error = self._try(tool, args)
            if error is None:
                return True
            if error.permission:
                self._call("request_access", {"permission": error.permission})
            elif error.need is None or depth == 0 or not self._meet(tool, args, error, depth):
                return False
        return False

    def _try(self, tool: DomainTool, args: JsonObject) -> Refused | None:
        self.budget -= 1
        books, length = self.world.mark(), len(self.plan)
        try:
            if tool.confirm:
                subject = args[tool.subject] if tool.subject else NO_ROW
                for one in subject if isinstance(subject, list) else [subject]:  # pyright: ignore
                    self._call("confirm", {"tool": tool.name, "id": one})
            self._call(tool.name, args)
        except Refused as error:
            self.world.rewind(books)
            del self.plan[length:]
            return error
        self.world.db.execute("release here")
        return None

    def _call(self, name: str, args: JsonObject) -> None:
        for _ in range(MOST_BUSY):
            result = self.world.call(name, args)
            self.plan.append((name, args))
            if BUSY not in str(result):
                return

    def _meet(self, tool: DomainTool, args: JsonObject, error: Refused, depth: int) -> bool:
        """Bring about a need: wait for what is to come, or make a call that changes a field it looks at."""
        need = error.need
        if need is None or isinstance(need.left, Count):
            return False
        single = _single(args)
        for path in (*paths(need.left), *paths(need.right)):
            try:
                key, name = self.world.place_of(tool, path, single)
            except Refused:
                continue
            for later in self.world.books.later:
                if (later.key, later.field) == (key, name):
                    hours = max(1, later.due - self.world.books.hour)
                    self._call("wait", {"hours": hours})
                    return True
            _, left, right = self.world.check(tool, need, single)
            target = right if path in paths(need.left) else left
            for other, binding in self._changing(key, name, target):
                books, length = self.world.mark(), len(self.plan)
                if self._make(other, binding, depth - 1) and (
                    self.world.check(tool, need, single)[0] or self._comes(key, name)
                ):
                    self.world.db.execute("release here")
                    return True
                self.world.rewind(books)
                del self.plan[length:]
        return False

    def _comes(self, key: Key, name: str) -> bool:
        return any((one.key, one.field) == (key, name) for one in self.world.books.later)

    def _relevant(self) -> Iterator[tuple[DomainTool, JsonObject]]:
        """Calls that could bring about something that is wanted, and is not so yet."""
        missing = list(self.wanted.sentences)
        for one in difference_now(self.world):
            if one in missing:
                missing.remove(one)
        for entity, row in self.wanted.created:
            if any(one.startswith(f"new {entity}:") for one in missing):
                yield from self._making(entity, row)
        for (key, name), value in self.wanted.changed.items():
            if any(one.startswith(f"{key[0]} {key[1]}: {name} =") for one in missing):
                yield from self._changing(key, name, value)
        for key in self.wanted.removed:
            for tool in self.domain.acts:
                for effect in tool.effects:
                    if isinstance(effect, Remove) and tool.args[effect.argument].entity == key[0]:
                        yield from self._bindings(tool, {effect.argument: key[1]})

    def _making(self, entity: str, row: Row) -> Iterator[tuple[DomainTool, JsonObject]]:
        for tool in self.domain.acts:
            for effect in tool.effects:
                if isinstance(effect, New) and effect.entity == entity:
                    bound: JsonObject = {}
                    if all(self._unify(v, row[f], bound) for f, v in effect.fields):
                        yield from self._bindings(tool, bound)

    def _changing(
        self, key: Key, name: str, value: Value
    ) -> Iterator[tuple[DomainTool, JsonObject]]:
        """Calls that change this field, to this value as far as can be seen."""
        for tool in self.domain.acts:
            for effect in tool.effects:
                bound: JsonObject = {}
                match effect:
                    case Set() if effect.path.parts[-1] == name:
                        if self.domain.entity_at(tool, effect.path.parts[:-1]) != key[0]:
                            continue
                        if not self._unify(effect.value, value, bound, key, name):
                            continue
                        if len(effect.path.parts) == 2:
                            if bound.get(effect.path.parts[0], key[1]) != key[1]:
                                continue
                            bound[effect.path.parts[0]] = key[1]
                        for _, args in self._bindings(tool, bound):
                            if self._leads_to(tool, effect, args, key, value):
                                yield tool, args
                    case SetEach() if (effect.entity, effect.field) == (key[0], name):
                        row = self.world.row(*key)
                        if row and self._unify(effect.value, value, bound):
                            for field, one in effect.where:
                                self._unify(one, row[field], bound)
                            yield from self._bindings(tool, bound)
                    case _:
                        pass

    def _leads_to(
        self, tool: DomainTool, effect: Set, args: JsonObject, key: Key, value: Value
    ) -> bool:
        """False if a call sets another row, or this one to another value. Sums may still grow."""
        single = _single(args)
        try:
            place, _ = self.world.place_of(tool, effect.path, single)
            set_to = self.world.value(tool, effect.value, single)
        except Refused:
            return False
        return place == key and (isinstance(effect.value, Combined) or set_to == value)

    def _unify(
        self,
        one: Expression,
        value: Value,
        bound: JsonObject,
        key: Key | None = None,
        name: str = "",
    ) -> bool:
        """True if an expression can have this value; arguments that have to be so are bound."""
        match one:
            case Constant():
                return one.value == value
            case Path() if len(one.parts) == 1:
                if bound.setdefault(one.parts[0], value) != value:
                    return False
            case Combined() if key is not None and isinstance(one.right, Path):
                row = self.world.row(*key)
                present = row[name] if row else None
                if (
                    len(one.right.parts) == 1
                    and isinstance(value, int)
                    and isinstance(present, int)
                    and one.operation in "+-"
                ):
                    bound.setdefault(
                        one.right.parts[0],
                        value - present if one.operation == "+" else present - value,
                    )
            case _:
                pass
        return True

    def _bindings(
        self, tool: DomainTool, bound: JsonObject
    ) -> Iterator[tuple[DomainTool, JsonObject]]:
        """The call with what is not bound yet taken from the wanted state and from the world."""
        options: list[list[Any]] = []
        for name, spec in tool.args.items():
            if name in bound:
                if bound[name] is None:
                    return
                options.append([[bound[name]] if spec.many else bound[name]])
            elif spec.kind == "ref":
                ids = [str(row["id"]) for row in self.world.rows(spec.entity)]
                spoken = [id for id in ids if self._spoken_of(id)]
                rest = [id for id in ids if id not in spoken]
                some = [*spoken, *rest][:MOST_ROWS_TRIED]
                options.append([[id] if spec.many else id for id in some])
            elif spec.kind == "choice":
                options.append(list(spec.choices))
            else:
                options.append(
                    [v for v in self._values() if isinstance(v, int) == (spec.kind == "int")]
                )
        for values in islice(product(*options), MOST_BINDINGS):
            yield tool, dict(zip(tool.args, values, strict=True))

    def _spoken_of(self, id: str) -> bool:
        return any(id in one for one in self.wanted.sentences) or any(
            id == changed for _, changed in self.world.books.before
        )

    def _values(self) -> list[Value]:
        found = [value for _, row in self.wanted.created for value in row.values()]
        found += self.wanted.changed.values()
        for (key, name), value in self.wanted.changed.items():
            row = self.world.row(*key)
            present = row[name] if row else None
            if isinstance(value, int) and isinstance(present, int):
                found.append(abs(value - present))
        return list(dict.fromkeys(one for one in found if one is not None))


def _single(args: JsonObject) -> JsonObject:
    """The arguments, of a list the first row alone."""
    return {
        name: cast("list[Any]", value)[0] if isinstance(value, list) else value
        for name, value in args.items()
    }


def difference_now(world: World) -> tuple[str, ...]:
    """`difference`, of a world that goes on afterwards."""
    books = world.mark()
    told = difference(world)
    world.rewind(books)
    return told
