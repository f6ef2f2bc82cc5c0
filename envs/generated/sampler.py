"""Samples chains of acts, and the world in which each chain works.

An act is drawn with less weight the more often it was used, and with more where an earlier act of the chain
makes it possible (`tool_graph.successors`); it is added only if all that it depends on is there. The world is
instantiated act by act: what an act needs and no earlier act has settled is made so in the rows from the
beginning. Ids that a request does not tell are looked up by steps of their own. Flows out: a `Draft`, which
the verification has yet to accept."""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from envs.generated.books import NO_ROW, Fact, Key, Refused
from envs.generated.chain import Broken, Step, given, play_step
from envs.generated.domain import Domain, DomainTool, Entity, Row
from envs.generated.expression import New, Set, Value, paths
from envs.generated.names import draw
from envs.generated.population import populate, random_value
from envs.generated.task_data import Difficulty
from envs.generated.tool_graph import successors
from envs.generated.world import World
from envs.message import JsonObject

BINDINGS, REPAIRS, GUESSES = 8, 6, 8
ENABLED_WEIGHT = 4.0


class NoChain(Exception):
    """No chain of the asked length was found; the reason in a few words."""


@dataclass(frozen=True)
class Asked:
    """One thing the user wants: the act, and how each argument is said."""

    tool: str
    said: dict[str, str]


@dataclass
class Draft:
    """A chain in the making, and the world it has been played on so far.

    known: rows whose id a step gave. pinned: facts that the chain has read or changed, which have to stay.
    """

    domain: Domain
    rng: random.Random
    difficulty: Difficulty
    rows: dict[str, list[Row]]
    world: World
    steps: list[Step] = field(default_factory=list[Step])
    gave: list[JsonObject] = field(default_factory=list[JsonObject])
    traces: list[tuple[set[Fact], set[Fact]]] = field(
        default_factory=list[tuple[set[Fact], set[Fact]]]
    )
    asked: list[Asked] = field(default_factory=list[Asked])
    known: dict[Key, dict[str, object]] = field(default_factory=dict[Key, dict[str, object]])
    made: dict[Key, int] = field(default_factory=dict[Key, int])
    touched: list[Key] = field(default_factory=list[Key])
    pinned: set[Fact] = field(default_factory=set[Fact])
    question: str = ""
    answer: tuple[int, str] | tuple[()] = ()

    def run(self, step: Step) -> JsonObject:
        """Play a step and keep it. Raises Broken, Refused."""
        result = play_step(self.world, step, self.gave)
        self.steps.append(step)
        self.gave.append(result)
        self.traces.append((self.world.reads, self.world.writes))
        self.pinned |= self.world.reads | self.world.writes
        return result


def draft(domain: Domain, rng: random.Random, difficulty: Difficulty, used: Counter[str]) -> Draft:
    """A chain of `difficulty.chain` acts. `used` counts the acts of earlier chains, and those of this one
    too.

    Raises NoChain.
    """
    rows = populate(domain, rng, difficulty.distractors)
    made = Draft(domain, rng, difficulty, rows, World(domain, rows))
    enabled: set[str] = set()
    following = successors(domain)
    try:
        while len(made.asked) < difficulty.chain:
            tools = _drawn(domain, rng, used, enabled)
            if not any(_add_act(made, tool) for tool in tools[:6]):
                raise NoChain("no act fits after those before")
            used[made.asked[-1].tool] += 1
            enabled |= set(following[made.asked[-1].tool])
        if rng.random() < difficulty.question:
            _add_question(made)
    except NoChain:
        made.world.close()
        raise
    return made


def _drawn(
    domain: Domain, rng: random.Random, used: Counter[str], enabled: set[str]
) -> list[DomainTool]:
    """The acts in a random order, by weight (Efraimidis and Spirakis: the largest u ** (1 / weight)
    first)."""

    def key(tool: DomainTool) -> float:
        weight = (ENABLED_WEIGHT if tool.name in enabled else 1.0) / (1 + used[tool.name]) ** 2
        return rng.random() ** (1 / weight)

    return sorted(domain.acts, key=key, reverse=True)


def _add_act(made: Draft, tool: DomainTool) -> bool:
    """Add an act with what it takes to prepare it; False where no arguments were found that work."""
    for _ in range(BINDINGS):
        args = _bound(made, tool)
        if args is not None and _make_possible(made, tool, args):
            return _keep(made, tool, args)
    return False


def _bound(made: Draft, tool: DomainTool) -> JsonObject | None:
    """Arguments for an act: rows that were touched before, or others; None where there are too few."""
    args: JsonObject = {}
    for name, spec in tool.args.items():
        if spec.kind == "ref":
            rows = [str(row["id"]) for row in made.world.rows(spec.entity)]
            before = [id for entity, id in made.touched if entity == spec.entity and id in rows]
            taken = [one for k, one in args.items() if tool.args[k].entity == spec.entity]
            fresh = [id for id in rows if id not in taken and (spec.entity, id) not in made.made]
            again = [id for id in before if id not in taken]
            if spec.many:
                if len(fresh) < 2:
                    return None
                args[name] = sorted(made.rng.sample(fresh, 2))
            elif again and made.rng.random() >= made.difficulty.branching:
                args[name] = made.rng.choice(again)
            elif fresh:
                args[name] = made.rng.choice(fresh)
            else:
                return None
        elif spec.kind == "label":
            entity = next((e.entity for e in tool.effects if isinstance(e, New)), "")
            taken_names = {str(v) for rows in made.rows.values() for r in rows for v in r.values()}
            args[name] = draw(spec.pool or entity or "works", made.rng, taken_names)
        else:
            args[name] = random_value(spec, made.rng, {}, set())
    return args


def _make_possible(made: Draft, tool: DomainTool, args: JsonObject) -> bool:
    """Make the rows, or let time pass, so that the call works; True if it does."""
    many = next((name for name, spec in tool.args.items() if spec.many), "")
    singles = [{**args, many: one} for one in args[many]] if many else [args]
    granted = made.world.books.granted
    for _ in range(REPAIRS):
        books = made.world.mark()
        failed: tuple[JsonObject, Refused] | None = None
        if tool.permission and tool.permission not in granted:
            made.world.call("request_access", {"permission": tool.permission})
        for single in singles:
            try:
                made.world.call(tool.name, {**single, many: [single[many]]} if many else single)
            except Refused as error:
                failed = single, error
                break
        made.world.rewind(books)
        if failed is None:
            return True
        if not _repair(made, tool, *failed):
            return False
    return False


def _repair(made: Draft, tool: DomainTool, args: JsonObject, error: Refused) -> bool:
    """Change what is not pinned, or wait for what is to come, until the failed need holds."""
    if error.need is None:
        return _loosen(made, tool, args)
    sides = [*paths(error.need.left), *paths(error.need.right)]
    places: list[tuple[Key, str]] = []
    for path in sides:
        try:
            place = made.world.place_of(tool, path, args)
        except Refused:
            return False
        if place[1]:
            places.append(place)
    for later in made.world.books.later:
        if (later.key, later.field) in places:
            made.run(Step("wait", {"hours": max(1, later.due - made.world.books.hour)}))
            return True
    for key, name in places:
        if _free(made, key, name):
            before = made.world.row(*key)
            for value in _guesses(made, key, name, error, tool, args):
                made.world.place(*key, name, value)
                if made.world.check(tool, error.need, args)[0]:
                    return _settle(made, key, name, value)
            made.world.place(*key, name, before[name] if before else None)
    return False


def _loosen(made: Draft, tool: DomainTool, args: JsonObject) -> bool:
    """A number would leave its bounds: begin with another one."""
    for effect in tool.effects:
        if not isinstance(effect, Set):
            continue
        try:
            key, name = made.world.place_of(tool, effect.path, args)
        except Refused:
            continue
        spec = made.domain.entities[key[0]].fields[name]
        if spec.kind == "int" and _free(made, key, name):
            return _settle(made, key, name, made.rng.randint(spec.low, spec.high))
    return False


def _free(made: Draft, key: Key, name: str) -> bool:
    """True if a field is still open: of a row that was there from the beginning, and not looked at yet."""
    marks = {(*key, name), (key[0], "", name), (key[0], "", "")}
    spec = made.domain.entities[key[0]].fields[name]
    return spec.kind != "label" and key not in made.made and not marks & made.pinned


def _guesses(
    made: Draft, key: Key, name: str, error: Refused, tool: DomainTool, args: JsonObject
) -> list[Value]:
    """Values that may meet a need: the other side's, then random ones."""
    spec = made.domain.entities[key[0]].fields[name]
    ids = {spec.entity: [str(r["id"]) for r in made.world.rows(spec.entity)]} if spec.entity else {}
    found: list[Value] = []
    need = error.need
    if need is not None:
        _, left, right = made.world.check(tool, need, args)
        found += [one for one in (right, left) if _can_be(spec, one, ids)]
    return found + [random_value(spec, made.rng, ids, set()) for _ in range(GUESSES)]


def _can_be(spec: Any, value: Value, ids: dict[str, list[str]]) -> bool:
    if spec.kind == "int":
        return isinstance(value, int) and spec.low <= value <= spec.high
    if spec.kind == "ref":
        return (value is None and spec.optional) or value in ids[spec.entity]
    return value in spec.choices if spec.kind == "choice" else isinstance(value, str)


def _settle(made: Draft, key: Key, name: str, value: Value) -> bool:
    made.world.place(*key, name, value)
    row = next(row for row in made.rows[key[0]] if row["id"] == key[1])
    row[name] = value
    return True


def _keep(made: Draft, tool: DomainTool, args: JsonObject) -> bool:
    """Add the steps of an act: what is looked up, asked for, confirmed, and the call itself."""
    said: dict[str, str] = {}
    call: JsonObject = {}
    try:
        for name, spec in tool.args.items():
            if spec.kind != "ref":
                call[name], said[name] = args[name], str(args[name])
            elif spec.many:
                both = [_referred(made, spec.entity, id) for id in args[name]]
                call[name] = [value for value, _ in both]
                said[name] = " and ".join(words for _, words in both)
            else:
                call[name], said[name] = _referred(made, spec.entity, args[name])
        if tool.permission and tool.permission not in made.world.books.granted:
            made.run(Step("request_access", {"permission": tool.permission}))
        if tool.confirm:
            subjects = call[tool.subject] if tool.subject else NO_ROW
            for one in cast("list[Any]", subjects) if isinstance(subjects, list) else [subjects]:
                made.run(Step("confirm", {"tool": tool.name, "id": one}))
        result = made.run(Step(tool.name, call))
    except (Broken, Refused) as error:
        raise NoChain(f"the chain breaks: {error}") from None
    made.asked.append(Asked(tool.name, said))
    _touch(made, tool, args, result)
    return True


def _touch(made: Draft, tool: DomainTool, args: JsonObject, result: JsonObject) -> None:
    for name, spec in tool.args.items():
        if spec.kind == "ref":
            ids = args[name] if spec.many else [args[name]]
            made.touched += [(spec.entity, id) for id in ids]
    for effect in tool.effects:
        if isinstance(effect, New) and effect.entity in result:
            key = (effect.entity, str(result[effect.entity]))
            made.known[key] = given(len(made.steps) - 1, effect.entity)
            made.made[key] = len(made.asked)
            made.touched.append(key)


def _referred(made: Draft, entity_name: str, id: str) -> tuple[object, str]:
    """The value that a step passes for a row, and how the user says it. Raises Broken, Refused."""
    key = (entity_name, id)
    if key in made.made:
        return made.known[key], f"the {entity_name} from ({made.made[key]})"
    words = _words(made, entity_name, id)
    if key in made.known:
        return made.known[key], words
    entity = made.domain.entities[entity_name]
    if made.rng.random() >= made.difficulty.lookups:
        return id, f"{entity_name.replace('_', ' ')} {id}"
    step = _lookup(made, entity, id)
    if step is None:
        return id, f"{entity_name.replace('_', ' ')} {id}"
    result = made.run(step)
    if result.get("id") != id:
        raise Broken("a lookup finds another row")
    made.known[key] = given(len(made.steps) - 1)
    return made.known[key], words


def _lookup(made: Draft, entity: Entity, id: str) -> Step | None:
    """The step that finds a row by what people say; None where the domain has no tool for it."""
    row = made.world.row(entity.name, id)
    assert row is not None, "the row was drawn from the world"
    tools = made.domain.tools.values()
    if entity.label:
        find = next((t for t in tools if t.kind == "find" and t.entity == entity.name), None)
        if find is not None:
            return Step(find.name, {entity.label: row[entity.label]})
    listed = next((t for t in tools if t.kind == "list" and t.entity == entity.name), None)
    if listed is None:
        return None
    args: JsonObject = {}
    pick: JsonObject = {}
    for name in entity.by:
        spec = entity.fields[name]
        if spec.kind == "ref":
            args[name], _ = _referred(made, spec.entity, str(row[name]))
        else:
            pick[name] = row[name]
    return Step(listed.name, args, pick or {name: args[name] for name in entity.by})


def _words(made: Draft, entity_name: str, id: str) -> str:
    """How people call a row, by what it was in the beginning."""
    entity = made.domain.entities[entity_name]
    row = next((row for row in made.rows[entity_name] if row["id"] == id), None)
    if row is None:
        raise Broken("a row that is told by a new one")
    told: dict[str, str] = {}
    for name in entity.by:
        spec = entity.fields[name]
        made.pinned.add((entity_name, id, name))
        told[name] = _words(made, spec.entity, str(row[name])) if spec.entity else str(row[name])
    return entity.called.format(**told)


def _add_question(made: Draft) -> None:
    """End with a question about a row that the chain has touched, if one can be asked."""
    pending = {(later.key, later.field) for later in made.world.books.later}
    fields = [
        (key, spec)
        for key in dict.fromkeys(made.touched)
        if key not in made.made and f"get_{key[0]}" in made.domain.tools
        for spec in made.domain.entities[key[0]].fields.values()
        if spec.kind in ("int", "choice", "text")
        and spec.name not in made.domain.entities[key[0]].by
        and (key[0], spec.name) not in made.domain.clocked
        and (key, spec.name) not in pending
    ]
    made.rng.shuffle(fields)
    for key, spec in fields[:1]:
        try:
            if made.world.row(*key) is None:
                continue
            value, words = _referred(made, *key)
            made.run(Step(f"get_{key[0]}", {key[0]: value}))
        except (Broken, Refused) as error:
            raise NoChain(f"the question breaks: {error}") from None
        made.answer = (len(made.steps) - 1, spec.name)
        made.question = f"{spec.name.replace('_', ' ')}|{words}"
