"""Types of a domain's expressions: every path leads somewhere, every value fits the field that takes it.

In: a domain as it was read. Out: one sentence per mistake, with the tool and the expression it is in.
"""

from collections.abc import Iterator

from envs.generated.domain import Domain, DomainTool, Entity, Field
from envs.generated.expression import (
    Combined,
    Constant,
    Count,
    Expression,
    Need,
    New,
    Now,
    Path,
    Remove,
    Set,
    SetEach,
    Where,
    uses_now,
)

# A number, a reference to this entity, or a text; a choice knows its words.
_NUMBER = Field("a number", "int")
_COUNTED = ("int",)


def type_mistakes(domain: Domain) -> list[str]:
    """Everything that does not fit, tool by tool."""
    found: list[str] = []
    for tool in domain.acts:
        many = [arg for arg in tool.args.values() if arg.many]
        if len(many) > 1:
            found.append(f"tool.{tool.name}.args: only one argument can be a list")
        found += [f"tool.{tool.name}: {one}" for one in _of_tool(domain, tool)]
    if not found:  # then every path leads somewhere
        found += _beside_the_clock(domain)
    for entity in domain.entities.values():
        if circle := _told_in_a_circle(domain, entity, ()):
            found.append(f"entity.{entity.name}.by: rows are told by rows in a circle, {circle}")
        for name, field in entity.fields.items():
            if field.many:
                found.append(f"entity.{entity.name}.fields.{name}: a field cannot be a list")
    return found


def _beside_the_clock(domain: Domain) -> Iterator[str]:
    """Say which acts set a field that others set from the clock: a rubric, which cannot look at the field,
    would not see them."""
    for tool in domain.acts:
        for effect in tool.effects:
            match effect:
                case New():
                    given = [(effect.entity, name, value) for name, value in effect.fields]
                case Set():
                    entity = domain.entity_at(tool, effect.path.parts[:-1])
                    given = [(entity, effect.path.parts[-1], effect.value)]
                case SetEach():
                    given = [(effect.entity, effect.field, effect.value)]
                case Remove():
                    given = []
            for entity, name, value in given:
                if (entity, name) in domain.clocked and not uses_now(value):
                    yield (
                        f"tool.{tool.name}: {entity}.{name} is set from `now` by another act, and so is not "
                        "compared by the judge: set it from `now` here too"
                    )


def _told_in_a_circle(domain: Domain, entity: Entity, inside: tuple[str, ...]) -> str:
    """The circle of entities in which `by` leads back to where it began; "" for none."""
    if entity.name in inside:
        return " by ".join((*inside, entity.name)) if inside[0] == entity.name else ""
    above = (*inside, entity.name)
    told = [entity.fields[name].entity for name in entity.by if entity.fields[name].entity]
    circles = [_told_in_a_circle(domain, domain.entities[one], above) for one in told]
    return next((one for one in circles if one), "")


def _of_tool(domain: Domain, tool: DomainTool) -> Iterator[str]:
    for need in tool.needs:
        yield from _of_need(domain, tool, need)
    for effect in tool.effects:
        match effect:
            case Set():
                if len(effect.path.parts) < 2:
                    yield f"{effect.path} is an argument, and only a field can be changed"
                    continue
                target = _field_at(domain, tool, effect.path)
                yield from _assigned(domain, tool, target, effect.value)
                yield from _emptied(domain, tool, target, effect.value)
            case SetEach():
                yield from _of_where(domain, tool, effect.entity, effect.where)
                known = domain.entities.get(effect.entity)
                target = known.fields.get(effect.field) if known else None
                target = target or f"{effect.entity} has no field {effect.field}"
                yield from _assigned(domain, tool, target, effect.value)
                yield from _emptied(domain, tool, target, effect.value)
            case New():
                yield from _of_where(domain, tool, effect.entity, effect.fields)
                yield from _unsaid(domain, effect)
                made = domain.entities.get(effect.entity)
                for name, value in effect.fields:
                    filled = made.fields.get(name) if made else None
                    yield from _emptied(domain, tool, filled or name, value)
            case Remove():
                if effect.argument not in tool.args or not tool.args[effect.argument].entity:
                    yield f"remove {effect.argument}: that is no argument that names a row"


def _of_need(domain: Domain, tool: DomainTool, need: Need) -> Iterator[str]:
    right = _type_of(domain, tool, need.right)
    if isinstance(need.left, Count):
        yield from _of_where(domain, tool, need.left.entity, need.left.where)
        left: Field | str = _NUMBER
    else:
        left = _type_of(domain, tool, need.left)
    if isinstance(left, str) or isinstance(right, str):
        yield f"need {need.text!r}: {left if isinstance(left, str) else right}"
        return
    if need.comparison not in ("=", "!=") and "int" not in (left.kind, right.kind):
        yield f"need {need.text!r}: {need.comparison} compares numbers"
    elif why := _incomparable(left, right, need):
        yield f"need {need.text!r}: {why}"


def _incomparable(left: Field, right: Field, need: Need) -> str:
    """Why two sides can never be equal; "" where one of them could be the other."""
    if isinstance(need.right, Constant):
        return _unfit(left, right, need.right)
    there = _unfit(left, right, need.right)
    return there and _unfit(right, left, need.left)


def _of_where(domain: Domain, tool: DomainTool, name: str, where: Where) -> Iterator[str]:
    entity = domain.entities.get(name)
    if entity is None:
        yield f"there is no entity {name!r}"
        return
    for key, value in where:
        target = entity.fields.get(key, f"{name} has no field {key}")
        yield from _assigned(domain, tool, target, value)


def _unsaid(domain: Domain, effect: New) -> Iterator[str]:
    entity = domain.entities.get(effect.entity)
    said = {key for key, _ in effect.fields}
    for field in entity.fields.values() if entity else ():
        if field.name not in said and not field.has_default and not field.optional:
            yield f"new {effect.entity}: it has to say {field.name}, which has no default"


def _assigned(
    domain: Domain, tool: DomainTool, target: Field | str, value: Expression
) -> Iterator[str]:
    given = _type_of(domain, tool, value)
    if isinstance(target, str) or isinstance(given, str):
        yield target if isinstance(target, str) else str(given)
    elif why := _unfit(target, given, value):
        yield why


def _emptied(
    domain: Domain, tool: DomainTool, target: Field | str, value: Expression
) -> Iterator[str]:
    """Say that a field which is never without a value would lose it; a need of the tool may rule that out."""
    if isinstance(target, str) or target.optional or not isinstance(value, Path):
        return
    given = _field_at(domain, tool, value)
    if isinstance(given, str) or not given.optional:
        return
    if not any(
        need.left == value and need.comparison == "!=" and need.right == Constant(None)
        for need in tool.needs
    ):
        yield (
            f"{value} can be nothing, and {target.name} is never without a value: add the need "
            f"`{value} != nothing`"
        )


def _unfit(target: Field, given: Field, value: Expression | Count) -> str:
    """Why a value cannot stand in a field, or beside it in a comparison; "" where it can."""
    if isinstance(value, Constant):
        if value.value is None:
            return "" if target.optional else f"{target.name} is never without a value"
        if target.kind == "choice" and value.value not in target.choices:
            return (
                f"{value.value!r} is none of {target.name}'s choices: {', '.join(target.choices)}"
            )
        if target.kind == "int" and not isinstance(value.value, int):
            return f"{value.value!r} is neither a number nor an argument"
        if target.kind in ("label", "text") and not isinstance(value.value, str):
            return f"{value.value!r} is a number, and {target.name} a text"
        if target.kind == "ref":
            return f"{target.name} refers to a {target.entity}, and {value.value!r} is a word"
        return ""
    if (target.kind == "int") != (given.kind == "int"):
        return f"{target.name} and {given.name} are not both numbers"
    if (target.kind == "ref" or given.kind == "ref") and target.entity != given.entity:
        wanted = target.entity or "text"
        return f"{target.name} is of {wanted}, and {given.name} of {given.entity or 'text'}"
    if target.kind == "choice" and given.kind in ("label", "text"):
        return f"{given.name} can be any text, and {target.name} one of its choices alone"
    if target.kind == "choice" and given.kind == "choice":
        extra = set(given.choices) - set(target.choices)
        return (
            f"{given.name} can be {', '.join(sorted(extra))}, and {target.name} not"
            if extra
            else ""
        )
    return ""


def _type_of(domain: Domain, tool: DomainTool, value: Expression | Count) -> Field | str:
    match value:
        case Path():
            return _field_at(domain, tool, value)
        case Constant():
            kind = "int" if isinstance(value.value, int) else "text"
            return Field(str(value.value), kind)
        case Combined():
            for part in (value.left, value.right):
                found = _type_of(domain, tool, part)
                if isinstance(found, str):
                    return found
                if found.kind not in _COUNTED:
                    return f"{found.name} is no number, and {value.operation} needs two"
            return _NUMBER
        case Now() | Count():
            return _NUMBER


def _field_at(domain: Domain, tool: DomainTool, path: Path) -> Field | str:
    field = tool.args.get(path.parts[0])
    if field is None:
        return f"{path} begins with {path.parts[0]!r}, which is no argument of the tool"
    for part in path.parts[1:]:
        entity = domain.entities.get(field.entity)
        if entity is None:
            return f"{path}: {field.name} is no row, so it has no {part}"
        if part not in entity.fields:
            return f"{path}: {entity.name} has no field {part}"
        field = entity.fields[part]
    return field
