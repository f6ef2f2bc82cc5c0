"""The graph of a domain's tools: which tool makes another one possible, and what the domain looks like
without names.

`successors` has an edge from a tool to each tool that takes a row it makes, or needs a field it changes.
`structure` is a Weisfeiler-Lehman hash (Shervashidze et al., 2011) of entities, fields and tools, in which no
name occurs: two domains of one hash are renamings of each other, as far as such a hash can tell."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from envs.generated.domain import Domain, DomainTool, changed_fields
from envs.generated.expression import Count, New, paths

ROUNDS = 4


def needed_fields(domain: Domain, tool: DomainTool) -> set[tuple[str, str]]:
    """(entity, field) that a tool's needs look at."""
    found: set[tuple[str, str]] = set()
    for need in tool.needs:
        if isinstance(need.left, Count):
            found.add((need.left.entity, ""))
        for path in (*paths(need.left), *paths(need.right)):
            for i in range(1, len(path.parts)):
                found.add((domain.entity_at(tool, path.parts[:i]), path.parts[i]))
    return found


def successors(domain: Domain) -> dict[str, tuple[str, ...]]:
    """For each act, the acts that it can make possible."""
    changed = {tool.name: changed_fields(domain, tool) for tool in domain.acts}
    needed = {tool.name: needed_fields(domain, tool) for tool in domain.acts}
    found: dict[str, tuple[str, ...]] = {}
    for tool in domain.acts:
        made = {effect.entity for effect in tool.effects if isinstance(effect, New)}
        found[tool.name] = tuple(
            other.name
            for other in domain.acts
            if changed[tool.name] & needed[other.name]
            or any(arg.entity in made for arg in other.args.values() if arg.entity)
        )
    return found


def structure(domain: Domain) -> str:
    """Hash the domain without its names: 16 hexadecimal digits."""
    colours, edges = _graph(domain)
    for _ in range(ROUNDS):
        colours = {
            node: _hash([colour, *sorted(f"{kind}{colours[other]}" for kind, other in edges[node])])
            for node, colour in colours.items()
        }
    return _hash(sorted(colours.values()))


def _graph(domain: Domain) -> tuple[dict[str, str], dict[str, list[tuple[str, str]]]]:
    """Nodes with their first colour, and edges both ways, each with a kind."""
    colours: dict[str, str] = {}
    edges: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def join(one: str, kind: str, other: str) -> None:
        if other in colours and one in colours:
            edges[one].append((kind, other))
            edges[other].append((f"-{kind}", one))

    for entity in domain.entities.values():
        colours[entity.name] = f"entity {len(entity.by)} {bool(entity.label)}"
        for field in entity.fields.values():
            colours[f"{entity.name}.{field.name}"] = f"{field.kind} {len(field.choices)}"
    for tool in domain.tools.values():
        kinds = sorted(type(effect).__name__ for effect in tool.effects)
        signs = sorted(need.comparison for need in tool.needs)
        colours[f"{tool.name}()"] = (
            f"{tool.kind} {kinds} {signs} {tool.confirm} {bool(tool.permission)}"
        )
    for entity in domain.entities.values():
        for field in entity.fields.values():
            join(entity.name, "has", f"{entity.name}.{field.name}")
            join(f"{entity.name}.{field.name}", "refers", field.entity)
    for tool in domain.tools.values():
        node = f"{tool.name}()"
        join(node, "reads", tool.entity)
        for arg in tool.args.values():
            join(node, "takes many" if arg.many else "takes", arg.entity)
        for kind, fields in (
            ("changes", changed_fields(domain, tool)),
            ("needs", needed_fields(domain, tool)),
        ):
            for entity, name in sorted(fields):
                join(node, kind, f"{entity}.{name}" if name else entity)
    return colours, edges


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
