"""Reads a domain out of a file (TOML or JSON), or says everything that is wrong with it, a sentence each.

In: the tables `entity.NAME` and `tool.NAME`, which docs/worlds.md describes. Out: a `Domain`, whose short
forms (`offers`, `update`) have become tools, with the tools that every world has. Refuses, as DomainMistake,
what cannot be interpreted; that a domain can be played as well is for the generator to find out."""

import json
import re
import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from string import Formatter
from typing import cast

from envs.generated.domain import Domain, DomainTool, Entity, Field, ToolKind
from envs.generated.domain_types import type_mistakes
from envs.generated.expression import (
    MEANINGS,
    MOST_HOURS,
    ExpressionMistake,
    read_effect,
    read_need,
)
from envs.generated.short_forms import field_of, offered_tools, update_tool
from envs.text import encodable_json

FOLDER = Path(__file__).parent / "domains"
_TOP = {"name", "title", "entity", "tool"}
_ENTITY = {"fields", "by", "called", "count", "offers", "update"}
_TOOL = {"does", "args", "needs", "effects", "ask", "confirm", "permission"}
_RESERVED = {"id": "every row has an id already", "page": "lists have pages"}
MOST_FIELDS, MOST_LETTERS = 60, 400  # of an entity; of a need or effect
OFFERS = ("find", "get", "list", "create", "remove")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MOST_ROWS = 40


class DomainMistake(ValueError):
    """A domain that cannot be read: one sentence per mistake, which names its place."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


def builtin_names() -> list[str]:
    """The domains that come with Dorado."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def builtin(name: str) -> Domain:
    """A domain that comes with Dorado. Raises DomainMistake where there is none of that name."""
    if name not in builtin_names():
        known = ", ".join(builtin_names())
        raise DomainMistake([f"there is no domain {name!r}: there are {known}; or give a file"])
    return load(FOLDER / f"{name}.toml")


def load(path: Path) -> Domain:
    """The domain of a file. Raises DomainMistake."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_json = path.suffix == ".json"
        data: object = json.loads(text, object_pairs_hook=_once) if is_json else tomllib.loads(text)
    except OSError as error:
        raise DomainMistake([f"{path} cannot be read: {error.strerror}"]) from None
    except ValueError as error:  # of both readers, and of bytes that are no text
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise DomainMistake([f"{path} is no {kind}: {error}"]) from None
    except RecursionError:
        raise DomainMistake([f"{path} is nested too deeply"]) from None
    try:
        return read_domain(data)
    except DomainMistake as error:
        raise DomainMistake([f"{path}: {one}" for one in error.mistakes]) from None


def read_domain(data: object) -> Domain:
    """The domain that plain data describe. Raises DomainMistake with all that is wrong."""
    return _Reader().read(data)


class _Reader:
    """Reads one domain; `mistakes` grows, and what is wrong is left out."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self.known: set[str] = set()
        self.entities: dict[str, Entity] = {}
        self.tools: dict[str, DomainTool] = {}

    def read(self, data: object) -> Domain:
        top = self._table("the file", data, _TOP)
        name = self._text("the file", top, "name")
        title = self._text("the file", top, "title")
        self._name("name", name)
        entities = self._table("entity", top.get("entity"), None)
        if not entities:
            self.mistakes.append("entity: there is none, and a world needs one at least")
        self.known = set(entities)
        for key, one in entities.items():
            self._entity(key, self._table(f"entity.{key}", one, _ENTITY))
        for key, one in entities.items():
            if key in self.entities and isinstance(one, dict):
                self._offers(self.entities[key], cast("dict[str, object]", one))
        for key, one in self._table("tool", top.get("tool"), None).items():
            self._tool(key, self._table(f"tool.{key}", one, _TOOL))
        self._own_tools()
        source = cast("dict[str, object]", json.loads(json.dumps(data, default=str)))
        if encodable_json(source) != source:
            self.mistakes.append("the file: a text has half a letter in it (an unpaired \\ud800)")
        domain = Domain(name, title, self.entities, self.tools, source)
        if not self.mistakes:
            self.mistakes += type_mistakes(domain)
        if not self.mistakes and not domain.acts:
            self.mistakes.append("tool: none changes anything, so there is nothing to ask for")
        if self.mistakes:
            raise DomainMistake(self.mistakes)
        return domain

    def _entity(self, name: str, table: dict[str, object]) -> None:
        where = f"entity.{name}"
        self._name(where, name)
        if name.startswith("sqlite_"):
            self.mistakes.append(f"{where}: names that begin with sqlite_ are the database's own")
        fields: dict[str, Field] = {}
        for key, spec in self._table(f"{where}.fields", table.get("fields"), None).items():
            self._name(f"{where}.fields", key)
            if key in _RESERVED:
                self.mistakes.append(f"{where}.fields.{key}: {_RESERVED[key]}; call it otherwise")
            if found := self._field(f"{where}.fields.{key}", key, spec):
                fields[key] = found
        if len(fields) > MOST_FIELDS:
            self.mistakes.append(
                f"{where}.fields: {len(fields)} are too many, {MOST_FIELDS} the most"
            )
        by = table.get("by", [])
        names = [by] if isinstance(by, str) else [str(one) for one in _list(by)]
        if not names or any(one not in fields for one in names):
            self.mistakes.append(
                f"{where}.by: it has to name fields by which people tell one {name} from another, of "
                f"{', '.join(fields) or 'none'}"
            )
            return
        count = table.get("count", 8)
        if not isinstance(count, int) or not 2 <= count <= MOST_ROWS:
            self.mistakes.append(
                f"{where}.count: it has to be a whole number from 2 to {MOST_ROWS}"
            )
            count = 8
        plain = " ".join(f"{{{one}}}" for one in names)
        called = table.get("called", plain if len(names) == 1 else f"the {name} {plain}")
        if not isinstance(called, str):
            self.mistakes.append(f"{where}.called: it has to be a text with {plain} in it")
            return
        held = self._filled(f"{where}.called", called, names)
        if missing := [one for one in names if one not in held]:
            self.mistakes.append(f"{where}.called: {called!r} does not say {{{missing[0]}}}")
        prefix = name[:2].upper()
        self.entities[name] = Entity(name, fields, tuple(names), called, count, prefix)

    def _field(self, where: str, name: str, spec: object) -> Field | None:
        read = field_of(name, spec, self.known) if isinstance(spec, str) else None
        if isinstance(read, Field):
            return read
        self.mistakes.append(f"{where}: {read or 'it has to be a text such as `int 1..9`'}")
        return None

    def _tool(self, name: str, table: dict[str, object]) -> None:
        where = f"tool.{name}"
        self._name(where, name)
        does = self._text(where, table, "does")
        args: dict[str, Field] = {}
        for key, spec in self._table(f"{where}.args", table.get("args"), None).items():
            self._name(f"{where}.args", key)
            if key in MEANINGS:
                self.mistakes.append(
                    f"{where}.args.{key}: {key} {MEANINGS[key]}; call it otherwise"
                )
            if found := self._field(f"{where}.args.{key}", key, spec):
                args[key] = found
                if found.has_default:
                    self.mistakes.append(f"{where}.args.{key}: only fields have defaults")
        needed, done = self._texts(where, table, "needs"), self._texts(where, table, "effects")
        if long := [one for one in (*needed, *done) if len(one) > MOST_LETTERS]:
            self.mistakes.append(
                f"{where}: {long[0][:40]!r}... is longer than {MOST_LETTERS} letters"
            )
            return
        try:
            needs = tuple(read_need(one, args) for one in needed)
            effects = tuple(read_effect(one, args) for one in done)
        except ExpressionMistake as error:
            self.mistakes.append(f"{where}: {error}")
            return
        ask = tuple(self._texts(where, table, "ask"))
        if not effects:
            self.mistakes.append(f"{where}.effects: an act has to change something")
        if not ask:
            self.mistakes.append(f"{where}.ask: it needs a text by which people ask for the act")
        for one in ask:
            held = self._filled(f"{where}.ask", one, args)
            if missing := [key for key in args if key not in held]:
                self.mistakes.append(
                    f"{where}.ask: {one!r} does not say {', '.join(missing)}, so nobody could know"
                )
        confirm = table.get("confirm", False)
        permission = table.get("permission", "")
        if not isinstance(confirm, bool):
            self.mistakes.append(f"{where}.confirm: it has to be true or false")
        if not isinstance(permission, str):
            self.mistakes.append(f"{where}.permission: it has to be a name such as `manager`")
        self._add(
            where,
            DomainTool(
                name, "act", does, args, "", needs, effects, ask, confirm is True, str(permission)
            ),
        )

    def _offers(self, entity: Entity, table: dict[str, object]) -> None:
        where = f"entity.{entity.name}.offers"
        offers = self._text(where.rpartition(".")[0], table, "offers").split()
        if not offers:
            return
        for one in offers:
            if one not in OFFERS:
                self.mistakes.append(f"{where}: {one!r} is none of {', '.join(OFFERS)}")
        if "find" in offers and not entity.label:
            self.mistakes.append(f"{where}: find needs a label to find by, and `by` names none")
            return
        if not {"find", "list"} & set(offers):
            self.mistakes.append(
                f"{where}: without find or list nobody can learn the id of a {entity.name}"
            )
        for tool in offered_tools(entity, offers):
            self._add(where, tool)
        for key in self._texts(f"entity.{entity.name}", table, "update"):
            if key not in entity.fields:
                self.mistakes.append(f"entity.{entity.name}.update: there is no field {key!r}")
            else:
                self._add(where, update_tool(entity, entity.fields[key]))

    def _own_tools(self) -> None:
        """The tools that a world has of itself."""
        tools = list(self.tools.values())
        spoken = {"about": Field("about", "text")}
        self._own("ask_user", "ask", "ask the user for one thing that was not said", spoken)
        if any(getattr(effect, "after", 0) for tool in tools for effect in tool.effects):
            hours = {"hours": Field("hours", "int", low=1, high=MOST_HOURS)}
            self._own("wait", "wait", "let hours pass", hours)
        if asked := tuple(sorted({tool.permission for tool in tools if tool.permission})):
            args = {"permission": Field("permission", "choice", choices=asked)}
            self._own("request_access", "access", "get a permission that a tool asks for", args)
        if confirmed := tuple(tool.name for tool in tools if tool.confirm):
            args = {
                "tool": Field("tool", "choice", choices=confirmed),
                "id": Field("id", "text"),
            }
            self._own("confirm", "confirm", "ask the user to confirm one call, before it", args)

    def _own(self, name: str, kind: ToolKind, does: str, args: dict[str, Field]) -> None:
        self._add("tool", DomainTool(name, kind, does, args))

    def _add(self, where: str, tool: DomainTool) -> None:
        if tool.name in self.tools:
            self.mistakes.append(f"{where}: there are two tools {tool.name}")
        self.tools[tool.name] = tool

    def _name(self, where: str, name: str) -> None:
        if not _NAME.fullmatch(name):
            self.mistakes.append(f"{where}: {name!r} is no name: small letters, digits and _")

    def _filled(self, where: str, text: str, names: Collection[str]) -> set[str]:
        """The names in a text's braces, which have to hold one of these each, and nothing else."""
        try:
            parts = [part for part in Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            self.mistakes.append(f"{where}: {text!r}: {error}")
            return set()
        for _, name, form, conversion in parts:
            if form or conversion:
                self.mistakes.append(f"{where}: {text!r}: braces hold a name alone, as {{{name}}}")
            if name not in names:
                self.mistakes.append(
                    f"{where}: {text!r} has {{{name}}}, which is none of its names"
                )
        return {str(name) for _, name, _, _ in parts}

    def _text(self, where: str, table: Mapping[str, object], key: str) -> str:
        value = table.get(key)
        if isinstance(value, str) and value.strip():
            return value
        self.mistakes.append(f"{where}.{key}: it has to be a text")
        return ""

    def _texts(self, where: str, table: Mapping[str, object], key: str) -> list[str]:
        value = table.get(key)
        given = _list(value)
        texts = [one for one in given if isinstance(one, str)]
        if (value is not None and not isinstance(value, list)) or len(texts) != len(given):
            self.mistakes.append(f"{where}.{key}: it has to be a list of texts")
        return texts

    def _table(self, where: str, value: object, known: set[str] | None) -> dict[str, object]:
        if value is None and known is None:
            return {}
        if not isinstance(value, dict):
            self.mistakes.append(f"{where}: it has to be a table")
            return {}
        table = {str(key): one for key, one in cast("dict[object, object]", value).items()}
        for key in table:
            if known is not None and key not in known:
                self.mistakes.append(
                    f"{where}: unknown key {key!r}; known are {', '.join(sorted(known))}"
                )
        return table


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, whose later keys would replace earlier ones of the same name. Raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(one for one in names if names.count(one) > 1)!r} is there twice")
    return found


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
