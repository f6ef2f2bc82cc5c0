"""A text game: rooms, locked doors, keys, boxes; bring a thing to a room, and leave the rest where it is.

user: bring lamp to den. you: hall. ways: hall-den, hall-barn. lamp in barn
assistant: go(room=barn) ... take(thing=lamp) ... go(room=hall) ... go(room=den) ... drop(thing=lamp) ... done

The opening is the whole map, so the best walk can be planned. Judged on where everything lies at the
end; keys may lie or be carried anywhere.
"""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydantic import Field

from envs.builtin.words import PLACES, THINGS
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

COLOURS = ("red", "blue", "green")
# Of each difficulty: rooms, locked rooms, things to leave alone.
SIZES = {1: (3, 0, 0), 2: (5, 1, 1), 3: (7, 2, 3), 4: (9, 3, 4)}
Act = tuple[str, str]


@dataclass(frozen=True)
class State:
    """Where one stands, what lies where (`"you"`: is carried), which doors and boxes are open."""

    room: str
    places: tuple[tuple[str, str], ...]
    opened: frozenset[str] = frozenset()


class AdventureConfig(EnvConfig):
    """1: three rooms. 2: five, one locked. 3: seven, two locked, keys in boxes. 4: nine, three locked."""

    difficulty: int = Field(default=1, ge=1, le=4)


class Adventure(Env):
    """Bring a thing to a room through doors that need keys."""

    name = "adventure"
    reward_names = ("solved",)
    config_type = AdventureConfig
    config: AdventureConfig
    difficulties = 4

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        num_rooms, num_locked, num_others = SIZES[level]
        rooms = rng.sample(PLACES, num_rooms)
        # A tree: every room hangs on an earlier one. The key of a locked room lies outside of it and of what
        # hangs on it, so in a room that came before; the keys are so found one after the other.
        ways = [
            [rng.choice(rooms[: n if level > 1 else 1]), room] for n, room in enumerate(rooms) if n
        ]
        numbers = sorted(rng.sample(range(2, num_rooms), num_locked))
        locked = dict(zip((rooms[n] for n in numbers), COLOURS, strict=False))
        keys = {f"{locked[rooms[n]]} key": rng.choice(rooms[:n]) for n in numbers}
        goal, *others = rng.sample(THINGS, 1 + num_others)
        last = rooms[numbers[-1]] if numbers else rooms[0]
        ends = [last, rng.choice([room for room in rooms if room != last])]
        source, target = rng.sample(ends, 2)
        places = {goal: source, **keys, **{thing: rng.choice(rooms) for thing in others}}
        boxes: dict[str, str] = {}
        if level > 2:  # a box in a room, and the key in it
            boxes = {f"{key.split()[0]} box": room for key, room in keys.items()}
            places |= {key: f"{key.split()[0]} box" for key in keys}
        return {
            "difficulty": level, "ways": ways, "locked": locked, "boxes": boxes, "places": places,
            "start": rooms[0], "goal": goal, "target": target,
        }  # fmt: skip

    async def reset(self, task: Task) -> list[Message]:
        self.world = World(task.data)
        self.state = State(task.data["start"], tuple(task.data["places"].items()))
        return [Message("user", _opening(task.data))]

    @tool(read_only=True)
    async def look(self) -> str:
        """what is here"""
        here = self.state.room
        boxes = [box for box, room in self.world.boxes.items() if room == here]
        things = [thing for thing, _ in self.state.places if self.world.at_hand(self.state, thing)]
        ways = " ".join(sorted(self.world.ways[here]))
        return f"{here}: {', '.join([*things, *boxes]) or 'nothing'}. ways: {ways}"

    @tool
    async def go(self, room: str) -> str:
        """walk"""
        return self._act("go", room)

    @tool
    async def take(self, thing: str) -> str:
        """take it"""
        return self._act("take", thing)

    @tool
    async def drop(self, thing: str) -> str:
        """put it here"""
        return self._act("drop", thing)

    @tool
    async def open(self, what: str) -> str:
        """a box or room"""
        return self._act("open", what)

    def _act(self, verb: str, name: str) -> str:
        self.state = self.world.after(self.state, (verb, name))
        return "ok"

    async def score(self) -> dict[str, float]:
        return {"solved": float(self.answer is not None and self.world.is_solved(self.state))}

    def expert(self, task: Task) -> Expert:
        for verb, name in best_walk(task.data):
            yield call(verb, **{_ARGUMENT[verb]: name})
        yield say("done")


_ARGUMENT = {"go": "room", "take": "thing", "drop": "thing", "open": "what"}


class World:
    """The fixed part of a task; it turns a state and an act into the next state."""

    def __init__(self, data: JsonObject) -> None:
        self.locked: dict[str, str] = data["locked"]
        self.boxes: dict[str, str] = data["boxes"]
        self.wanted = {n: p for n, p in data["places"].items() if not n.endswith(" key")}
        self.wanted[data["goal"]] = data["target"]
        self.ways: dict[str, set[str]] = {}
        for one, other in data["ways"]:
            self.ways.setdefault(one, set()).add(other)
            self.ways.setdefault(other, set()).add(one)

    def at_hand(self, state: State, thing: str) -> bool:
        """True if the thing lies in this room, or in an open box in this room."""
        place = dict(state.places).get(thing)
        return place == state.room or (
            place in state.opened and self.boxes.get(place or "") == state.room
        )

    def is_solved(self, state: State) -> bool:
        """True if everything but the keys lies where it is wanted."""
        places = dict(state.places)
        return all(places[name] == place for name, place in self.wanted.items() if name in places)

    def after(self, state: State, act: Act) -> State:
        """The state after an act. Raises ToolError where it cannot be done."""
        verb, name = act
        places = dict(state.places)
        if verb == "go":
            if name not in self.ways[state.room]:
                raise ToolError(f"no way to {name!r}")
            if name in self.locked and name not in state.opened:
                raise ToolError(f"{name} is locked")
            return replace(state, room=name)
        if verb == "open":
            self._check_open(state, name, places)
            return replace(state, opened=state.opened | {name})
        if not (self.at_hand(state, name) if verb == "take" else places.get(name) == "you"):
            raise ToolError(f"no {name!r} {'here' if verb == 'take' else 'in your hands'}")
        places[name] = "you" if verb == "take" else state.room
        return replace(state, places=tuple(places.items()))

    def _check_open(self, state: State, name: str, places: dict[str, str]) -> None:
        if self.boxes.get(name) == state.room:
            return
        if name not in self.locked or name not in self.ways[state.room]:
            raise ToolError(f"no {name!r} to open here")
        key = f"{self.locked[name]} key"
        if places[key] != "you":
            raise ToolError(f"needs the {key}")

    def sensible(self, state: State, goal: str) -> Iterator[Act]:
        """Acts that a shortest walk can hold."""
        here, places = state.room, dict(state.places)
        for room in sorted(self.ways[here]):
            if room not in self.locked or room in state.opened:
                yield "go", room
            elif places[f"{self.locked[room]} key"] == "you":
                yield "open", room
        yield from (
            ("open", box)
            for box, room in self.boxes.items()
            if room == here and box not in state.opened
        )
        yield from (("take", thing) for thing in places if self.at_hand(state, thing))
        if places[goal] == "you" and here == self.wanted[goal]:
            yield "drop", goal


def best_walk(data: JsonObject) -> list[Act]:
    """The shortest walk that solves a task: breadth first over the states."""
    world = World(data)
    # What is to be left alone is left out.
    moved = tuple(
        (n, p) for n, p in data["places"].items() if n == data["goal"] or n.endswith("key")
    )
    first = State(data["start"], moved)
    came_from: dict[State, tuple[State, Act] | None] = {first: None}
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        if world.is_solved(state):
            walk: list[Act] = []
            while (step := came_from[state]) is not None:
                state, act = step
                walk.append(act)
            return walk[::-1]
        for act in world.sensible(state, data["goal"]):
            following = world.after(state, act)
            if following not in came_from:
                came_from[following] = (state, act)
                waiting.append(following)
    raise ValueError(f"no walk solves {data}")


def _opening(data: JsonObject) -> str:
    ways = ", ".join(
        f"{one}-{other}" + (f" ({data['locked'][other]} lock)" if other in data["locked"] else "")
        for one, other in data["ways"]
    )
    lying = ", ".join(f"{name} in {p}" for name, p in (data["places"] | data["boxes"]).items())
    rest = ", leave the rest" if data["difficulty"] > 1 else ""
    return (
        f"bring {data['goal']} to {data['target']}{rest}. you: {data['start']}. "
        f"ways: {ways}. {lying}"
    )
