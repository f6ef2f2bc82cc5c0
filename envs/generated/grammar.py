"""A grammar of business objects: samples new domains, of as many tools as are asked for.

Productions: *holders* (people with money and a standing), *assets* (things with a stock, a price and a
condition), and *records* that join the two and go through states, each step of which may cost, take from a
stock, wait, need a permission or a confirmation, or sweep over other records. Out: plain data as a domain
file has them, so that a sampled domain goes through the same reader and the same verification as one that a
person wrote."""

import random
from itertools import pairwise
from typing import Any

from envs.generated.domain import Domain
from envs.generated.domain_file import read_domain
from envs.generated.short_forms import plural

_HOLDERS = ("member", "client", "tenant", "sponsor", "pilot", "artist", "trader", "keeper")
_ASSETS = (
    "boat", "studio", "kiln", "drone", "garden", "mill", "bridge", "engine", "gallery", "loom",
    "press", "stall",
)  # fmt: skip
_RECORDS = (
    "permit", "lease", "voyage", "commission", "survey", "contract", "licence", "deal", "shift",
    "tour", "session", "trial",
)  # fmt: skip
_STATES: tuple[str, ...] = (
    "drafted",
    "filed",
    "granted",
    "begun",
    "held",
    "settled",
    "closed",
    "shelved",
)
_STEPS = ("file", "grant", "begin", "hold", "settle", "close", "shelve", "renew")
_CONDITIONS = (("ready", "worn", "broken"), ("open", "shut"), ("new", "used", "lent", "gone"))
_POOLS = ("things", "works", "places")
_PERMISSIONS = ("warden", "treasurer", "chief")
MOST_TOOLS = 150


def sample_domain(seed: str, tools: int = 30) -> Domain:
    """A domain of at least so many tools; the same seed makes the same domain. Raises ValueError for a number
    that cannot be reached."""
    if not 1 <= tools <= MOST_TOOLS:
        raise ValueError(f"a sampled domain has 1 to {MOST_TOOLS} tools, not {tools}")
    rng = random.Random(f"grammar/{seed}")
    made = _Made(rng, f"sampled_{seed}".replace("/", "_"))
    made.holder()
    made.asset()
    made.record()
    while len((domain := read_domain(made.data())).tools) < tools:
        rng.choice([made.record, made.record, made.asset, made.holder])()
    return domain


class _Made:
    """A domain in the making. Names that are used up get a number."""

    def __init__(self, rng: random.Random, name: str) -> None:
        self.rng = rng
        self.name = name
        self.entities: dict[str, Any] = {}
        self.tools: dict[str, Any] = {}
        self.holders: list[str] = []
        self.assets: dict[str, tuple[str, ...]] = {}
        self.records: dict[str, list[str]] = {}

    def data(self) -> dict[str, Any]:
        """Plain data, as of a file."""
        title = f"an office for {' and '.join(plural(one) for one in self.records)}"
        return {"name": self.name, "title": title, "entity": self.entities, "tool": self.tools}

    def holder(self) -> None:
        """People with money, who can pay in, pay, and be shut out."""
        name = self._fresh(_HOLDERS)
        limit = self.rng.choice([300, 600, 900])
        self.entities[name] = {
            "fields": {
                "name": "label people",
                "money": f"int 0..{limit}",
                "standing": "choice good|warned|out = good",
            },
            "by": "name",
            "count": self.rng.randint(6, 12),
            "offers": self.rng.choice(["find get list create", "find get list"]),
        }
        if "create" in self.entities[name]["offers"]:
            self.entities[name]["fields"]["money"] += " = 0"
        self.holders.append(name)
        self._tool(f"pay_in_{name}", {name: name, "amount": "int 5..90"}, [], [f"{name}.money += amount"],
                   f"pay in {{amount}} for {{{name}}}")  # fmt: skip
        self._tool(f"warn_{name}", {name: name}, [f"{name}.standing = good"], [f"{name}.standing = warned"],
                   f"warn {{{name}}}")  # fmt: skip
        if self.rng.random() < 0.6:
            self._tool(f"shut_out_{name}", {name: name}, [f"{name}.standing = warned"],
                       [f"{name}.standing = out"], f"shut {{{name}}} out", guarded=True)  # fmt: skip
        if self.rng.random() < 0.6:
            fee = self.rng.choice([10, 20, 40])
            self._tool(f"pardon_{name}", {name: name}, [f"{name}.standing != good", f"{name}.money >= {fee}"],
                       [f"{name}.standing = good", f"{name}.money -= {fee}"],
                       f"pardon {{{name}}} for a fee of {fee}")  # fmt: skip

    def asset(self) -> None:
        """Things with a price, a stock and a condition, which pass from one condition to another."""
        name = self._fresh(_ASSETS)
        conditions = self.rng.choice(_CONDITIONS)
        self.entities[name] = {
            "fields": {
                "name": f"label {self.rng.choice(_POOLS)}",
                "price": "int 5..80",
                "stock": "int 0..40",
                "condition": f"choice {'|'.join(conditions)}",
                "keeper": f"ref {self.rng.choice(self.holders)}?",
            },
            "by": "name",
            "called": f"the {name} {{name}}",
            "count": self.rng.randint(6, 12),
            "offers": "find get list",
            "update": self.rng.sample(["price", "keeper"], self.rng.randint(0, 2)),
        }
        self.assets[name] = conditions
        for one, other in zip(conditions, (*conditions[1:], conditions[0]), strict=True):
            if one != conditions[-1] or self.rng.random() < 0.7:
                wait = self.rng.choice([0, 0, 6, 24])
                change = f"{name}.condition = {other}"
                self._tool(f"make_{name}_{other}", {name: name}, [f"{name}.condition = {one}"],
                           [f"after {wait}: {change}" if wait else change],
                           f"make {{{name}}} {other}")  # fmt: skip
        self._tool(f"restock_{name}", {name: name, "amount": "int 1..9"}, [], [f"{name}.stock += amount"],
                   f"add {{amount}} to the stock of {{{name}}}")  # fmt: skip

    def record(self) -> None:
        """A record of a holder and an asset, which goes through states."""
        name = self._fresh(_RECORDS)
        holder, asset = self.rng.choice(self.holders), self.rng.choice(sorted(self.assets))
        states: list[str] = sorted(
            self.rng.sample(_STATES, self.rng.randint(3, 6)), key=_STATES.index
        )
        self.entities[name] = {
            "fields": {
                holder: f"ref {holder}",
                asset: f"ref {asset}",
                "number": "int 100..999",
                "amount": "int 1..5",
                "state": f"choice {'|'.join(states)} = {states[0]}",
            },
            "by": ["number"],
            "called": f"{name} {{number}}",
            "count": self.rng.randint(6, 12),
            "offers": "get list",
        }
        needs = [
            f"count({name}: number = number) = 0",
            f"{asset}.condition = {self.assets[asset][0]}",
        ]
        if self.rng.random() < 0.5:
            needs.append(
                f"count({name}: {holder} = {holder}, state = {states[0]}) < {self.rng.randint(2, 4)}"
            )
        if self.rng.random() < 0.5:
            needs.append(f"{holder}.standing != out")
        args = {holder: holder, asset: asset, "number": "int 100..999", "amount": "int 1..5"}
        new = (
            f"new {name}: {holder} = {holder}, {asset} = {asset}, number = number, amount = amount"
        )
        ask = f"draft {name} {{number}} for {{{holder}}} and {{{asset}}}, amount {{amount}}"
        self._tool(f"draft_{name}", args, needs, [new], ask)
        for one, other in pairwise(states):
            self._step(name, holder, asset, one, other)
        if self.rng.random() < 0.6:
            back = f"{name}.state = {states[0]}"
            self._tool(f"renew_{name}", {name: name}, [f"{name}.state = {states[-1]}"], [back],
                       f"renew {{{name}}}", guarded=self.rng.random() < 0.5)  # fmt: skip
        self.records[name] = states

    def _step(self, name: str, holder: str, asset: str, one: str, other: str) -> None:
        """From one state to the next, with what it takes."""
        verb = _STEPS[_STATES.index(other) - 1]
        needs, effects = [f"{name}.state = {one}"], [f"{name}.state = {other}"]
        args, subject = {name: name}, name
        match self.rng.randrange(6):
            case 0:
                cost = f"{name}.{asset}.price"
                needs.append(f"{name}.{holder}.money >= {cost}")
                effects.append(f"{name}.{holder}.money -= {cost}")
            case 1:
                needs.append(f"{name}.{asset}.stock >= {name}.amount")
                effects.append(f"{name}.{asset}.stock -= {name}.amount")
            case 2:
                effects = [f"after {self.rng.choice([2, 8, 30])}: {effects[0]}"]
            case 3:
                effects.append(f"{name}.{asset}.condition = {self.assets[asset][-1]}")
            case 4:
                rows = plural(name)
                args, subject = {rows: f"list {name}"}, rows
                needs, effects = [f"{rows}.state = {one}"], [f"{rows}.state = {other}"]
            case _ if self.records:
                swept = self.rng.choice(sorted(self.records))
                if holder in self.entities[swept]["fields"]:
                    last = self.records[swept][-1]
                    effects.append(f"each {swept}({holder} = {name}.{holder}): state = {last}")
            case _:
                needs.append(f"{name}.{holder}.standing = good")
        guarded = self.rng.random() < 0.25
        self._tool(f"{verb}_{name}", args, needs, effects, f"{verb} {{{subject}}}", guarded=guarded)

    def _tool(
        self, name: str, args: dict[str, str], needs: list[str], effects: list[str], ask: str,
        *, guarded: bool = False,
    ) -> None:  # fmt: skip
        """Add an act; a guarded one needs a permission, a confirmation, or both."""
        tool: dict[str, Any] = {
            "does": name.replace("_", " "),
            "args": args,
            "needs": needs,
            "effects": effects,
            "ask": [ask],
        }
        if guarded:
            kind = self.rng.randrange(3)
            tool |= {"permission": self.rng.choice(_PERMISSIONS)} if kind != 0 else {}
            tool |= {"confirm": True} if kind != 1 else {}
        self.tools[name] = tool

    def _fresh(self, nouns: tuple[str, ...]) -> str:
        free = [one for one in nouns if one not in self.entities]
        noun = self.rng.choice(free or nouns)
        return noun if noun not in self.entities else f"{noun}_{len(self.entities)}"
