"""Rows of a fresh world: as many of each entity as the domain says, told apart as the domain says.

In: a domain and a random generator. Out: rows, whose ids say nothing to a person, so that they have to be
looked up."""

import random
from collections import Counter

from envs.generated.books import Rows
from envs.generated.domain import Domain, Entity, Field, Row
from envs.generated.expression import Value
from envs.generated.names import draw

_TRIES = 20


def populate(domain: Domain, rng: random.Random, factor: float = 1.0) -> Rows:
    """Rows for every entity; factor: so many times as many as the domain asks for, two at least."""
    ids: dict[str, list[str]] = {}
    alike: Counter[str] = Counter()  # entities of a prefix: names may begin alike
    for name, entity in domain.entities.items():
        count = max(2, round(entity.count * factor))
        first = 100 + 10_000 * alike[entity.prefix]
        alike[entity.prefix] += 1
        numbers = rng.sample(range(first, first + 900), count)
        ids[name] = [f"{entity.prefix}{number}" for number in numbers]
    taken: dict[str, set[str]] = {}
    rows = {
        name: _distinct(entity, ids, rng, taken.setdefault(name, set()))
        for name, entity in domain.entities.items()
    }
    for name, entity in domain.entities.items():
        for field in entity.fields.values():
            for row in rows[name]:  # a row may have drawn one that could not be told apart
                if field.entity and row[field.name] not in (None, *ids[field.entity]):
                    row[field.name] = rng.choice(ids[field.entity])
    return rows


def random_value(
    field: Field, rng: random.Random, ids: dict[str, list[str]], taken: set[str]
) -> Value:
    """A value that the field can have."""
    match field.kind:
        case "label":
            return draw(field.pool, rng, taken)
        case "text":
            return draw(field.pool or "works", rng, set())
        case "int":
            return rng.randint(field.low, field.high)
        case "choice":
            return rng.choice(field.choices)
        case "ref":
            if field.optional and rng.random() < 0.5:
                return None
            return rng.choice(ids[field.entity])


def _distinct(
    entity: Entity, ids: dict[str, list[str]], rng: random.Random, taken: set[str]
) -> list[Row]:
    """Rows no two of which are told by the same words; where that cannot be, fewer."""
    rows: list[Row] = []
    seen: set[tuple[Value, ...]] = set()
    for id in sorted(ids[entity.name]):
        for _ in range(_TRIES):
            row: Row = {"id": id}
            for name, field in entity.fields.items():
                row[name] = random_value(field, rng, ids, taken)
            told = tuple(row[name] for name in entity.by)
            if None not in told and told not in seen:
                seen.add(told)
                rows.append(row)
                break
    kept = {row["id"] for row in rows}
    ids[entity.name] = [id for id in ids[entity.name] if id in kept]
    return rows
