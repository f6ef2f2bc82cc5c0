"""Tools of a domain as the policy is offered them: a name, a description, a JSON schema of the arguments.

One set per domain and process; an episode's tools share their checks (`DynamicTool.calling`).
"""

from functools import lru_cache
from typing import Any

from envs.dynamic_tool import DynamicTool
from envs.generated.domain import Domain, DomainTool, Field
from envs.message import JsonObject, ToolSchema
from envs.tool import ToolOptions

_SPOKEN = {
    "int": "integer",
    "choice": "string",
    "label": "string",
    "text": "string",
    "ref": "string",
}
MOST_AT_ONCE = 20


def offered(domain: Domain) -> tuple[DynamicTool, ...]:
    """The domain's tools; whoever offers them says what makes their calls (`DynamicTool.calling`)."""
    return _offered(_Held(domain))


class _Held:
    """A domain by its identity: it holds dictionaries, and a cache needs a hash."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def __hash__(self) -> int:
        return id(self.domain)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.domain is self.domain


@lru_cache(maxsize=256)
def _offered(held: _Held) -> tuple[DynamicTool, ...]:
    return tuple(
        DynamicTool(schema_of(tool), _unbound, ToolOptions(read_only=tool.reads_only))
        for tool in held.domain.tools.values()
    )


async def _unbound(arguments: JsonObject) -> str:
    raise RuntimeError("a tool has to be bound to a world before it is called")


def schema_of(tool: DomainTool) -> ToolSchema:
    """A tool's schema."""
    properties = {name: _property(spec) for name, spec in tool.args.items()}
    needed = [name for name, spec in tool.args.items() if not spec.optional]
    schema: JsonObject = {
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }
    told = tool.does + (f"; needs the permission {tool.permission}" if tool.permission else "")
    return ToolSchema(tool.name, told, schema)


def _property(spec: Field) -> dict[str, Any]:
    kind = _SPOKEN[spec.kind]
    one: dict[str, Any] = {"type": [kind, "null"] if spec.optional else kind}
    if spec.kind == "int":
        one |= {"minimum": spec.low, "maximum": spec.high}
    if spec.kind == "choice":
        one["enum"] = [*spec.choices, None] if spec.optional else list(spec.choices)
    if spec.kind == "ref":
        one["description"] = f"id of a {spec.entity}"
    if spec.many:
        one = {"type": "array", "items": one, "minItems": 1, "maxItems": MOST_AT_ONCE}
    return one
