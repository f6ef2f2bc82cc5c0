"""The small language of a domain file: what a tool needs, and what it changes.

    need:    visit.state = booked            patient.balance + fee <= 500       visit.doctor.on_duty = yes
             count(loan: member = member, state = open) < 3
    effect:  visit.state = cancelled         account.balance -= amount          remove visit
             new visit: patient = patient, day = day, state = booked
             each item(order = order): state = void
             after 4: parcel.state = arrived

A path begins with the name of an argument and follows references; a word that is no argument's name is a
text, `nothing` is no value, `now` is the hour of the world's clock. Raises ExpressionMistake with one
sentence."""

import re
from collections.abc import Collection
from dataclasses import dataclass

Value = str | int | None
MOST_HOURS = 240  # that one call can wait, and so that an effect can take
MEANINGS = {"now": "is the hour of the world", "nothing": "is no value"}
COMPARISONS = ("!=", "<=", ">=", "=", "<", ">")
_PATH = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")
_NUMBER = re.compile(r"-?[0-9]{1,15}")


class ExpressionMistake(ValueError):
    """An expression that cannot be read."""


@dataclass(frozen=True)
class Path:
    """An argument, or a field reached from it: `visit.doctor.name`."""

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.parts)


@dataclass(frozen=True)
class Constant:
    """A value that is written as it is."""

    value: Value


@dataclass(frozen=True)
class Now:
    """The hour of the world's clock."""


@dataclass(frozen=True)
class Combined:
    """Two values and an operation on numbers: + - *."""

    left: "Expression"
    operation: str
    right: "Expression"


Expression = Path | Constant | Now | Combined
Where = tuple[tuple[str, Expression], ...]


@dataclass(frozen=True)
class Count:
    """How many rows of an entity have these values."""

    entity: str
    where: Where


@dataclass(frozen=True)
class Need:
    """A comparison that has to hold before a tool acts; `text` is how it was written."""

    left: Expression | Count
    comparison: str
    right: Expression
    text: str


@dataclass(frozen=True)
class Set:
    """A field of a row takes a value, at once or `after` so many hours."""

    path: Path
    value: Expression
    after: int = 0


@dataclass(frozen=True)
class SetEach:
    """A field of all rows that have these values takes a value."""

    entity: str
    where: Where
    field: str
    value: Expression


@dataclass(frozen=True)
class New:
    """A row begins to exist."""

    entity: str
    fields: Where


@dataclass(frozen=True)
class Remove:
    """The row of an argument ends."""

    argument: str


Effect = Set | SetEach | New | Remove


def read_need(text: str, arguments: Collection[str]) -> Need:
    """`slot.state = free` as a Need. Raises ExpressionMistake."""
    for comparison in COMPARISONS:
        left, found, right = _outside(text, comparison)
        if found:
            counted = re.fullmatch(r"count\(\s*(\w+)\s*(?::(.*))?\)", left.strip())
            if counted:
                where = _where(counted.group(2) or "", arguments)
                first: Expression | Count = Count(counted.group(1), where)
            else:
                first = read_expression(left, arguments)
            return Need(first, comparison, read_expression(right, arguments), text)
    raise ExpressionMistake(f"{text!r} has no comparison: write one of {' '.join(COMPARISONS)}")


def read_effect(text: str, arguments: Collection[str]) -> Effect:
    """`slot.state = taken` as an Effect. Raises ExpressionMistake."""
    if made := re.fullmatch(r"new (\w+)\s*(?::(.*))?", text.strip()):
        return New(made.group(1), _where(made.group(2) or "", arguments))
    if removed := re.fullmatch(r"remove (\w+)", text.strip()):
        return Remove(removed.group(1))
    if each := re.fullmatch(r"each (\w+)\((.*)\)\s*:\s*(\w+)\s*=(.*)", text.strip()):
        entity, where, name, value = each.groups()
        return SetEach(entity, _where(where, arguments), name, read_expression(value, arguments))
    later = re.fullmatch(r"after ([0-9]{1,15})\s*:(.*)", text.strip())
    after, rest = (int(later.group(1)), later.group(2)) if later else (0, text)
    if after > MOST_HOURS:
        raise ExpressionMistake(f"{text!r} takes {after} hours, and {MOST_HOURS} are the most")
    change = re.fullmatch(r"\s*([a-z0-9_.]+)\s*([+-]?)=(.*)", rest)
    if change is None or "." not in change.group(1):
        raise ExpressionMistake(
            f"{text!r} is no effect: write `argument.field = value`, `new entity: field = value`, "
            "`remove argument` or `each entity(field = value): field = value`"
        )
    path = Path(tuple(change.group(1).split(".")))
    value = read_expression(change.group(3), arguments)
    if change.group(2):
        value = Combined(path, change.group(2), value)
    return Set(path, value, after)


def read_expression(text: str, arguments: Collection[str]) -> Expression:
    """One value, or two with + - * between them. Raises ExpressionMistake."""
    for operation in (" + ", " - ", " * "):
        left, found, right = text.rpartition(operation)
        if found:
            return Combined(
                read_expression(left, arguments),
                operation.strip(),
                read_expression(right, arguments),
            )
    text = text.strip()
    if text == "now":
        return Now()
    if text == "nothing":
        return Constant(None)
    if _NUMBER.fullmatch(text):
        return Constant(int(text))
    if not _PATH.fullmatch(text):
        raise ExpressionMistake(f"{text!r} is no value: write a number, a word or argument.field")
    parts = tuple(text.split("."))
    if parts[0] in arguments:
        return Path(parts)
    if len(parts) > 1:
        raise ExpressionMistake(
            f"{text!r} begins with {parts[0]!r}, which is no argument of the tool"
        )
    return Constant(text)


def paths(one: Expression | Count) -> list[Path]:
    """The paths that a value is made of."""
    match one:
        case Path():
            return [one]
        case Combined():
            return [*paths(one.left), *paths(one.right)]
        case Count():
            return [path for _, value in one.where for path in paths(value)]
        case _:
            return []


def uses_now(one: Expression) -> bool:
    """True if a value depends on the clock."""
    return isinstance(one, Now) or (
        isinstance(one, Combined) and (uses_now(one.left) or uses_now(one.right))
    )


def _where(text: str, arguments: Collection[str]) -> Where:
    pairs: list[tuple[str, Expression]] = []
    for part in text.split(","):
        if not part.strip():
            continue
        name, found, value = part.partition("=")
        if not found or not name.strip().isidentifier():
            raise ExpressionMistake(f"{part.strip()!r} has to be `field = value`")
        pairs.append((name.strip(), read_expression(value, arguments)))
    return tuple(pairs)


def _outside(text: str, sign: str) -> tuple[str, str, str]:
    """Cut at a comparison that stands outside of brackets and is no part of a longer one."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth or not text.startswith(sign, i):
            continue
        longer = sign == "=" and i > 0 and text[i - 1] in "!<>"
        shorter = len(sign) == 1 and text[i + 1 : i + 2] == "=" and sign in "<>"
        if not longer and not shorter:
            return text[:i], sign, text[i + len(sign) :]
    return text, "", ""
