"""Chains: calls of tools in order, in which what a call gave is an argument of a later one.

A step's arguments are values, or `{"from": 2, "get": "id"}`, which is a field of what step 2 gave. A step
with `pick` looks through the pages of a list for the row that has these values. `performed` makes the calls
of a chain one by one for whoever carries them out: the verification on a world, the expert in an episode."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

from envs.generated.books import BUSY, Refused
from envs.generated.domain import Domain
from envs.generated.world import World
from envs.message import JsonObject

T = TypeVar("T")
Call = tuple[str, dict[str, object]]
MOST_RETRIES = 8
MOST_PAGES = 20


class Broken(Exception):
    """A chain that cannot go on: an argument is not there, or a call was refused."""


@dataclass(frozen=True)
class Step:
    """One call, e.g. `Step("get_visit", {"visit": {"from": 0, "get": "id"}})`."""

    tool: str
    args: JsonObject
    pick: JsonObject = field(default_factory=JsonObject)

    def as_json(self) -> JsonObject:
        """Plain data."""
        return {"tool": self.tool, "args": self.args, "pick": self.pick}

    @classmethod
    def of_json(cls, data: JsonObject) -> "Step":
        """Undo `as_json`."""
        return cls(data["tool"], data["args"], data["pick"])


def given(step: int, name: str = "id") -> dict[str, object]:
    """An argument that is what an earlier step gave."""
    return {"from": step, "get": name}


def sources(step: Step) -> list[int]:
    """The earlier steps whose results a step uses."""
    found: list[int] = []
    for value in (*step.args.values(), *step.pick.values()):
        for one in cast("list[object]", value) if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                found.append(cast("dict[str, int]", one)["from"])
    return found


def reordered(steps: Sequence[Step], order: Sequence[int]) -> list[Step]:
    """The same steps in another order, each still with what its own sources give."""
    new = {old: place for place, old in enumerate(order)}
    return [_renumbered(steps[old], new) for old in order]


def shifted_by(steps: Sequence[Step], count: int) -> list[Step]:
    """The same steps, as they are where so many others stand before them."""
    new = {old: old + count for old in range(len(steps))}
    return [_renumbered(step, new) for step in steps]


def _renumbered(step: Step, new: Mapping[int, int]) -> Step:
    def moved(value: object) -> object:
        if isinstance(value, list):
            return [moved(one) for one in cast("list[object]", value)]
        if isinstance(value, dict):
            source = cast("JsonObject", value)
            return {**source, "from": new[source["from"]]}
        return value

    return replace(
        step,
        args={name: moved(value) for name, value in step.args.items()},
        pick={name: moved(value) for name, value in step.pick.items()},
    )


def performed(
    steps: Sequence[Step], absent: int = -1
) -> Generator[Call, JsonObject, list[JsonObject]]:
    """Yield each call, be sent its result, return what the steps gave.

    absent: a step that is left out; what uses its result cannot be called. Raises Broken.
    """
    gave: list[JsonObject] = []
    for i, step in enumerate(steps):
        if i == absent:
            gave.append({})
            continue
        args = {name: resolved(value, gave) for name, value in step.args.items()}
        pick = {name: resolved(value, gave) for name, value in step.pick.items()}
        gave.append((yield from _picked(step, args, pick) if pick else _made(step.tool, args)))
    return gave


def play(world: World, steps: Sequence[Step], absent: int = -1) -> list[JsonObject]:
    """Carry out a chain on a world. Raises Broken, Refused."""
    return _driven(world, performed(steps, absent))


def play_on(world: World, steps: Sequence[Step]) -> list[JsonObject]:
    """Carry out what can be: a step that is refused, or lacks its arguments, is passed over."""
    gave: list[JsonObject] = []
    for step in steps:
        try:
            gave.append(play_step(world, step, gave))
        except (Broken, Refused):
            gave.append({})
    return gave


def play_step(world: World, step: Step, gave: Sequence[JsonObject]) -> JsonObject:
    """Carry out one step, after those that gave this; `world.reads` and `writes` are then of all its calls.

    Raises Broken, Refused.
    """
    world.reads, world.writes = set(), set()
    args = {name: resolved(value, gave) for name, value in step.args.items()}
    pick = {name: resolved(value, gave) for name, value in step.pick.items()}
    made = _picked(step, args, pick) if pick else _made(step.tool, args)
    return _driven(world, made)


def writes(domain: Domain, steps: Sequence[Step]) -> list[int]:
    """The places of the steps that act."""
    return [i for i, step in enumerate(steps) if domain.tools[step.tool].kind == "act"]


def _driven(world: World, calls: Generator[Call, JsonObject, T]) -> T:
    """Make the calls of a chain or of a step; what it is in the end. Raises Broken, Refused."""
    try:
        name, args = next(calls)
        while True:
            name, args = calls.send(world.call(name, args))
    except StopIteration as end:
        return end.value


def resolved(value: object, gave: Sequence[JsonObject]) -> object:
    """An argument with what earlier steps gave in it. Raises Broken where they did not."""
    if isinstance(value, list):
        return [resolved(one, gave) for one in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    source = cast("JsonObject", value)
    at, name = int(source["from"]), str(source["get"])
    found: object = gave[at].get(name)
    if found is None:
        raise Broken(f"step {at} gave no {name}")
    return found


def _made(tool: str, args: dict[str, object]) -> Generator[Call, JsonObject, JsonObject]:
    """One call, made again while the tool is busy; of a list what was not done is done again."""
    result: JsonObject = {}
    for _ in range(MOST_RETRIES):
        result = yield tool, args
        rest = result.get("not_done")
        if isinstance(rest, dict):
            left = [key for key, why in cast("dict[str, object]", rest).items() if why == BUSY]
            if not left:
                return result
            many = next((name for name, value in args.items() if isinstance(value, list)), "")
            args = {**args, many: left}
        elif result.get("error") != BUSY:
            return result
    return result


def _picked(
    step: Step, args: dict[str, object], pick: dict[str, object]
) -> Generator[Call, JsonObject, JsonObject]:
    """The row of a list that has these values. Raises Broken."""
    for page in range(1, MOST_PAGES + 1):
        result = yield from _made(step.tool, {**args, "page": page})
        rows = result.get("rows")
        for row in cast("list[JsonObject]", rows) if isinstance(rows, list) else []:
            if all(row.get(name) == value for name, value in pick.items()):
                return row
        pages = result.get("pages")
        if not isinstance(pages, int) or page >= pages:
            break
    raise Broken(f"no row of {step.tool} has {pick}")
