"""Short forms of a domain file: `int 1..9` as a field, `offers` and `update` as tools

In: texts, and an entity that was read. Out: fields and tools, or one sentence that says what is wrong."""

import re
from collections.abc import Iterator
from dataclasses import replace

from envs.generated.domain import DomainTool, Entity, Field
from envs.generated.expression import MEANINGS, read_effect
from envs.generated.names import POOLS

_INT = re.compile(r"(-?[0-9]{1,15})\.\.(-?[0-9]{1,15})")


def field_of(name: str, spec: str, entities: set[str]) -> Field | str:
    """`choice open|shut = open` as a field, or what is wrong with it."""
    body, has_default, default = (part.strip() for part in spec.partition(" = "))
    kind, _, rest = (part.strip() for part in body.partition(" "))
    found: Field | str = f"{spec!r} is none of label, text, int, choice, ref, list, or an entity"
    if kind in ("label", "text"):
        found = Field(name, kind, pool=rest)
        if rest not in POOLS:
            found = f"{rest!r} is no pool of names; there are {', '.join(sorted(POOLS))}"
    elif kind == "int":
        ends = _INT.fullmatch(rest)
        found = f"{spec!r} has to be `int LEAST..MOST`, of 15 digits at most"
        if ends and int(ends.group(1)) < int(ends.group(2)):
            found = Field(name, "int", low=int(ends.group(1)), high=int(ends.group(2)))
    elif kind == "choice":
        choices = tuple(one.strip() for one in rest.split("|"))
        found = Field(name, "choice", choices=choices)
        if len(set(choices)) < 2 or "" in choices:
            found = f"{spec!r} has to offer two different choices at least"
        elif numbers := [one for one in choices if re.fullmatch(r"-?\d+", one)]:
            found = (
                f"{numbers[0]} is a number, and a choice has to be a word: write `int` or a word"
            )
        elif taken := [one for one in choices if one in MEANINGS]:
            found = f"the choice {taken[0]!r} is taken: it {MEANINGS[taken[0]]} in a need or effect"
    elif kind in ("ref", "list") or (kind in entities and not rest):
        entity = (rest or kind).removesuffix("?")
        found = Field(name, "ref", entity=entity, optional=rest.endswith("?"), many=kind == "list")
        if entity not in entities:
            found = f"there is no entity {entity!r}"
    if isinstance(found, Field) and has_default:
        return _with_default(found, default)
    return found


def _with_default(found: Field, default: str) -> Field | str:
    value = int(default) if re.fullmatch(r"-?[0-9]{1,15}", default) else default
    if found.kind == "int" and not isinstance(value, int):
        return f"the default {default!r} is no number"
    if found.kind == "int" and not found.low <= int(value) <= found.high:
        return f"the default {default} is not between {found.low} and {found.high}"
    if found.kind == "label":
        return "a label can have no default, for no two rows have the same"
    if found.kind == "choice" and default not in found.choices:
        return f"the default {default!r} is none of its choices"
    if found.kind == "ref" and default != "nothing":
        return "a reference can have no default but `nothing`"
    kept = str(default) if found.kind in ("choice", "text") else value
    return replace(found, default=None if found.kind == "ref" else kept, has_default=True)


def offered_tools(entity: Entity, offers: list[str]) -> Iterator[DomainTool]:
    name, one = entity.name, {entity.name: Field(entity.name, "ref", entity=entity.name)}
    if "find" in offers:
        label = entity.fields[entity.label]
        yield DomainTool(
            f"find_{name}", "find", f"the {name} of this {label.name}", {label.name: label}, name
        )
    if "get" in offers:
        yield DomainTool(f"get_{name}", "get", f"all about one {name}", one, name)
    if "list" in offers:
        page = Field("page", "int", low=1, high=99)
        some = {key: f for key, f in entity.fields.items() if f.kind in ("ref", "choice")}
        filters = {k: replace(f, optional=True) for k, f in some.items()}
        does = f"{plural(name)}, a page at a time, all or those with some value"
        yield DomainTool(f"list_{plural(name)}", "list", does, {"page": page, **filters}, name)
    if "create" in offers:
        yield _create(entity, {k: f for k, f in entity.fields.items() if not f.has_default})
    if "remove" in offers:
        yield DomainTool(
            f"remove_{name}", "act", f"end a {name} that nothing refers to", one,
            effects=(read_effect(f"remove {name}", one),), ask=(f"remove {{{name}}}",),
            confirm=True,
        )  # fmt: skip


def _create(entity: Entity, args: dict[str, Field]) -> DomainTool:
    said = [f"with {key.replace('_', ' ')} {{{key}}}" for key in args]
    fields = ", ".join(f"{key} = {key}" for key in args)
    return DomainTool(
        f"create_{entity.name}", "act", f"a new {entity.name}", args,
        effects=(read_effect(f"new {entity.name}: {fields}", args),),
        ask=(f"add a {entity.name} " + ", ".join(said),),
    )  # fmt: skip


def update_tool(entity: Entity, changed: Field) -> DomainTool:
    name, key = entity.name, changed.name
    args = {name: Field(name, "ref", entity=name), key: changed}
    if key == name:  # a field that is called as its entity
        args = {name: args[name], f"new_{key}": changed}
    given = list(args)[1]
    said = key.replace("_", " ")
    return DomainTool(
        f"change_{name}_{key}", "act", f"change the {said} of a {name}", args,
        effects=(read_effect(f"{name}.{key} = {given}", args),),
        ask=(
            f"change the {said} of {{{name}}} to {{{given}}}",
            f"set {{{given}}} as the {said} of {{{name}}}",
        ),
    )  # fmt: skip


def plural(name: str) -> str:
    """visit -> visits, delivery -> deliveries."""
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "ch", "sh")) else f"{name}s"
