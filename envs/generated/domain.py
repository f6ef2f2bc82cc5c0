"""A domain: entities with fields, and tools that act on them, as frozen records.

In: `envs.generated.domain_file` reads them out of a file and has checked them. Out: what the interpreter, the
task generator and the planner look at. Nothing here knows a database.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from envs.generated.expression import (
    Combined,
    Effect,
    Expression,
    Need,
    New,
    Set,
    SetEach,
    Value,
    uses_now,
)

Row = dict[str, Value]
FieldKind = Literal["label", "text", "int", "choice", "ref"]
ToolKind = Literal["act", "find", "get", "list", "wait", "access", "confirm", "ask"]


@dataclass(frozen=True)
class Field:
    """A field of an entity or an argument of a tool, e.g. `Field("count", "int", low=1, high=9)`.

    choices: of a choice. entity: of a reference. pool: which names a label is drawn from. default: what a new
    row has where nothing is said. many: of an argument that is a list of references.
    """

    name: str
    kind: FieldKind
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    entity: str = ""
    pool: str = ""
    optional: bool = False
    default: Value = None
    has_default: bool = False
    many: bool = False


@dataclass(frozen=True)
class Entity:
    """A kind of rows. by: the fields by which people tell one from another; called: how they say so."""

    name: str
    fields: dict[str, Field]
    by: tuple[str, ...]
    called: str
    count: int
    prefix: str

    @property
    def label(self) -> str:
        """The field that names a row alone, "" where people need more than one to tell it."""
        return self.by[0] if self.fields[self.by[0]].kind == "label" else ""


@dataclass(frozen=True)
class DomainTool:
    """A tool: what it needs, what it changes, what people say who ask for it.

    confirm: a rule asks for the user's confirmation before each call. permission: what has to be granted
    first; "" for nothing.
    """

    name: str
    kind: ToolKind
    does: str
    args: dict[str, Field]
    entity: str = ""
    needs: tuple[Need, ...] = ()
    effects: tuple[Effect, ...] = ()
    ask: tuple[str, ...] = ()
    confirm: bool = False
    permission: str = ""

    @property
    def subject(self) -> str:
        """The argument whose rows a confirmation names: its list, or the first that is a row; "" for none."""
        rows = [name for name, spec in self.args.items() if spec.entity]
        return next((name for name in rows if self.args[name].many), rows[0] if rows else "")

    @property
    def reads_only(self) -> bool:
        """True if a call changes nothing in the world."""
        return self.kind in ("find", "get", "list", "ask")


@dataclass(frozen=True)
class Domain:
    """A world's rules. source: the file's content, from which it can be read again."""

    name: str
    title: str
    entities: dict[str, Entity]
    tools: dict[str, DomainTool]
    source: dict[str, object] = field(default_factory=dict[str, object], compare=False)

    @cached_property
    def acts(self) -> tuple[DomainTool, ...]:
        """The tools that change something on behalf of a user."""
        return tuple(tool for tool in self.tools.values() if tool.kind == "act")

    @cached_property
    def clocked(self) -> frozenset[tuple[str, str]]:
        """(entity, field) that are set from the clock: no rubric looks at them."""
        found: set[tuple[str, str]] = set()
        for tool in self.acts:
            for effect in tool.effects:
                match effect:
                    case New():
                        found |= {(effect.entity, f) for f, v in effect.fields if uses_now(v)}
                    case Set() if uses_now(effect.value):
                        entity = self.entity_at(tool, effect.path.parts[:-1])
                        found.add((entity, effect.path.parts[-1]))
                    case SetEach() if uses_now(effect.value):
                        found.add((effect.entity, effect.field))
                    case _:
                        pass
        return frozenset(found)

    def entity_at(self, tool: DomainTool, parts: tuple[str, ...]) -> str:
        """The entity that a path of references ends at; "" for one that ends elsewhere."""
        entity = tool.args[parts[0]].entity
        for part in parts[1:]:
            known = self.entities.get(entity)
            entity = known.fields[part].entity if known and part in known.fields else ""
        return entity


def changed_fields(domain: Domain, tool: DomainTool) -> set[tuple[str, str]]:
    """(entity, field) that a tool may change; ("visit", "") for rows that it makes or removes."""
    found: set[tuple[str, str]] = set()
    for effect in tool.effects:
        match effect:
            case Set():
                entity = domain.entity_at(tool, effect.path.parts[:-1])
                found.add((entity, effect.path.parts[-1]))
            case SetEach():
                found.add((effect.entity, effect.field))
            case New():
                found.add((effect.entity, ""))
            case _:
                found.add((tool.args[effect.argument].entity, ""))
    return found


def numbers_in(one: Expression) -> bool:
    """True if a value is computed."""
    return isinstance(one, Combined)
