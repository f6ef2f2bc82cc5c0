"""The rubric of a task: predicates over the difference of the database, and over the final answer.

`difference` tells what is no longer as it was in sentences such as `patient P12: balance = 40`; rows that are
new are told by what they hold and not by their ids, so that the order in which rows were made does not
matter. A rubric holds where each of its sentences is true and nothing else has changed: an extra write fails
as a missing one does. Sentences about calls say whether a rule was obeyed (`cancel_visit V3: confirmed`)."""

from dataclasses import dataclass
from typing import Any

from envs.generated.domain import Row
from envs.generated.expression import Value
from envs.generated.world import World


@dataclass(frozen=True)
class Rubric:
    """changes: sentences, sorted. answer: what the final answer has to be; "" where any will do."""

    changes: tuple[str, ...]
    answer: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"changes": list(self.changes), "answer": self.answer}

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Rubric":
        """Undo `as_json`."""
        return cls(tuple(data["changes"]), data["answer"])

    def holds(self, world: World, answer: str | None) -> bool:
        """True if the world and the answer are as they should be; lets the world settle first."""
        if answer is None or not answer.strip():
            return False
        if self.answer and plain(answer) != plain(self.answer):
            return False
        return difference(world) == self.changes


def difference(world: World) -> tuple[str, ...]:
    """Tell all that is no longer as it was, sorted; lets the world settle first."""
    world.settle()
    new = {id: (entity, id) for (entity, id), row in world.books.before.items() if row is None}
    told: list[str] = []
    for (entity, id), before in world.books.before.items():
        now = world.row(entity, id)
        if before is None:
            if now is not None:
                told.append(_new(world, new, id))
        elif now is None:
            told.append(f"{entity} {id}: removed")
        else:
            told += [
                f"{entity} {id}: {name} = {_value(world, new, value)}"
                for name, value in now.items()
                if value != before[name] and (entity, name) not in world.domain.clocked
            ]
    for tool, subject, confirmed in world.books.acts:
        sure = "confirmed" if confirmed else "not confirmed"
        told.append(f"{tool} {_value(world, new, subject)}: {sure}")
    told += [f"permission {one}: granted" for one in world.books.granted]
    return tuple(sorted(told))


def plain(answer: str) -> str:
    """An answer without what does not matter: case, space, a full stop, quotes and markdown around it."""
    return " ".join(answer.lower().strip().strip(".!\"'`*“”").split())


def _new(
    world: World, new: dict[str, tuple[str, str]], id: str, inside: tuple[str, ...] = ()
) -> str:
    """A new row by what it holds; `inside`: the rows that are being told, for rows may refer in a circle."""
    entity, _ = new[id]
    row: Row | None = world.row(entity, id)
    if row is None:
        return f"new {entity}, removed again"
    if id in inside:
        return f"that new {entity}"
    held = [
        f"{name} = {_value(world, new, value, (*inside, id))}"
        for name, value in row.items()
        if name != "id" and (entity, name) not in world.domain.clocked
    ]
    return f"new {entity}: " + ", ".join(held)


def _value(
    world: World, new: dict[str, tuple[str, str]], value: Value, inside: tuple[str, ...] = ()
) -> str:
    """A value; a new row by what it holds."""
    if isinstance(value, str) and value in new:
        return f"({_new(world, new, value, inside)})"
    return str(value)
