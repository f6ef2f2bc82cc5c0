"""Placement: which engine holds which policy version, and what has to move for it.

Algorithm 1 of DORA (arXiv 2604.26256, section 4.3), as functions of plain data: devices are shared out
over the versions by their backlog, idle engines change version, and requests follow the weights they
began with. No clock, no Ray, no vLLM: the live run and the simulator call the same functions.

Algorithm 1 measures a version's backlog in requests. Where trajectories differ much in length that is
unfair to an old version: its few stragglers fill more cache, and have more to write, than many requests
that have just begun, and its last ones are what the window waits for. So a trajectory can claim its
context, and what one is expected to write, instead of one place (`place`, `expected_tokens`).

A *trajectory in progress* counts for its version wherever it is: in an engine, or in a tool with its
cache left behind. `engine` is where its cache is, `""` where it has none.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LEARNER = "learner"


@dataclass(frozen=True)
class EngineState:
    """An engine: the version it holds (None: nothing yet) and how many trajectories it takes."""

    name: str
    version: int | None
    limit: int


@dataclass(frozen=True)
class InProgress:
    """A trajectory in progress. tokens: its context, which is what a move of its cache costs."""

    id: str
    version: int
    engine: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class WeightMove:
    """`engine` changes to `version`, with weights from `source`: a sibling engine, or the learner."""

    engine: str
    version: int
    source: str


@dataclass(frozen=True)
class RequestMove:
    """A trajectory goes on at `target`; `source` is where its cache is (`""`: it has none)."""

    id: str
    version: int
    source: str
    target: str


@dataclass(frozen=True)
class Placement:
    """Changes that a rebalance asks for. Requests leave an engine before its weights change.

    parked: trajectories no engine of their version has room for; they wait and keep their version.
    """

    weights: tuple[WeightMove, ...]
    requests: tuple[RequestMove, ...]
    parked: tuple[str, ...]


def share_engines(total: int, backlog: Mapping[int, int]) -> dict[int, int]:
    """Engines per version, in proportion to the backlog: `Round(DP_total * R_w / sum R)` of Algorithm 1.

    Rounding is by largest remainder, so that the shares add up; a version with any backlog has at least
    one engine; equal claims go to the newer version. Raises ValueError where more versions have a
    backlog than there are engines.
    """
    waiting = {version: size for version, size in backlog.items() if size > 0}
    if len(waiting) > total:
        raise ValueError(f"{len(waiting)} versions have a backlog, there are {total} engines")
    floored: dict[int, int] = {}
    while waiting:
        rest, backlogs = total - len(floored), sum(waiting.values())
        small = [v for v, size in waiting.items() if rest * size < backlogs]
        if not small:
            break
        floored |= dict.fromkeys(small, 1)
        for version in small:
            del waiting[version]
    return floored | _largest_remainder(total - len(floored), waiting)


def _largest_remainder(total: int, claims: Mapping[int, int]) -> dict[int, int]:
    whole = sum(claims.values())
    shares = {key: total * claim // whole for key, claim in claims.items()}
    left = total - sum(shares.values()) if claims else 0
    by_remainder = sorted(claims, key=lambda key: (total * claims[key] % whole, key), reverse=True)
    for key in by_remainder[:left]:
        shares[key] += 1
    return shares


def place(
    engines: Sequence[EngineState],
    trajectories: Sequence[InProgress],
    incoming: Mapping[int, int],
    *,
    newest: int,
    slack: int = 0,
    expected_tokens: int = 0,
) -> Placement:
    """Where every version and every trajectory in progress goes.

    incoming: trajectories about to begin, per version; they claim engines and have no cache yet.
    slack: how many trajectories above the even share an engine may keep rather than have them moved.
    expected_tokens: each trajectory claims its context and this; 0: all claim the same, as in Algorithm 1.
    With more versions than engines the oldest are served, which the window waits for.
    """
    members: dict[int, list[InProgress]] = defaultdict(list)
    for one in trajectories:
        members[one.version].append(one)
    backlog = {version: len(ones) for version, ones in members.items()}
    for version, count in incoming.items():
        backlog[version] = backlog.get(version, 0) + max(0, count)
    served = sorted(version for version, size in backlog.items() if size)[: len(engines)]
    claims = {v: backlog[v] * (expected_tokens or 1) for v in served}
    if expected_tokens:
        for version in served:
            claims[version] += sum(one.tokens for one in members[version])
    target = share_engines(len(engines), claims) if served else {}
    weights = _move_engines(engines, target, newest, _loads(trajectories))
    holds = {move.engine: move.version for move in weights}
    rooms: dict[int, dict[str, int]] = defaultdict(dict)
    for engine in engines:
        version = holds.get(engine.name, engine.version)
        if version is not None:
            rooms[version][engine.name] = engine.limit
    requests: list[RequestMove] = []
    parked: list[str] = []
    for version, ones in members.items():
        moved, left = spread(ones, rooms[version], slack=slack)
        requests += moved
        parked += left
    return Placement(tuple(weights), tuple(requests), tuple(parked))


def _loads(trajectories: Iterable[InProgress]) -> dict[str, int]:
    loads: dict[str, int] = defaultdict(int)
    for one in trajectories:
        loads[one.engine] += 1
    return loads


def _move_engines(
    engines: Sequence[EngineState],
    target: Mapping[int, int],
    newest: int,
    loads: Mapping[str, int],
) -> list[WeightMove]:
    """The engines that change version: of each version too many, those with the fewest trajectories."""
    holders: dict[int | None, list[EngineState]] = defaultdict(list)
    for engine in engines:
        holders[engine.version].append(engine)
    spare: list[EngineState] = []
    for version, ones in holders.items():
        surplus = len(ones) - target.get(version, 0) if version is not None else len(ones)
        if surplus > 0:
            # The last of equals goes, so that a plan that is carried out is not planned again.
            ones.sort(key=lambda e: loads.get(e.name, 0), reverse=True)
            spare += ones[len(ones) - surplus :]
    spare.sort(key=lambda e: loads.get(e.name, 0))
    moves: list[WeightMove] = []
    for version in sorted(target, reverse=True):
        staying = sorted(holders[version], key=lambda e: -loads.get(e.name, 0))
        missing = target[version] - len(staying)
        for index in range(missing):
            source = staying[index % len(staying)].name if staying else LEARNER
            moves.append(WeightMove(spare.pop(0).name, version, source))
    # Without a backlog to follow, an engine keeps what it has unless that version is gone for good.
    moves += [WeightMove(e.name, newest, LEARNER) for e in spare if e.version is None]
    return moves


def spread(
    trajectories: Sequence[InProgress], rooms: Mapping[str, int], *, slack: int = 0
) -> tuple[list[RequestMove], list[str]]:
    """Place one version's trajectories on its engines (name -> limit). Returns moves, and who has no room.

    Fewest moves: a trajectory stays with its cache unless its engine holds more than the even share plus
    `slack`, or more than its limit; then the shortest ones go, whose caches are the cheapest to move.
    """
    if not rooms:
        return [], [one.id for one in trajectories]
    even = _even_share(len(trajectories), sorted(rooms.values()))
    held: dict[str, list[InProgress]] = {name: [] for name in rooms}
    homeless: list[InProgress] = []
    for one in trajectories:
        held.get(one.engine, homeless).append(one)
    for name, ones in held.items():
        keep = min(rooms[name], even + slack)
        if len(ones) > keep:
            ones.sort(key=lambda one: -one.tokens)
            homeless += ones[keep:]
            del ones[keep:]
    # The longest first: where room is short, the stragglers go on.
    homeless.sort(key=lambda one: -one.tokens)
    return _fill(homeless, {name: len(ones) for name, ones in held.items()}, rooms)


def _even_share(count: int, limits: Sequence[int]) -> int:
    """The lowest level to which engines with these limits (ascending) can be filled to take `count`."""
    for index, limit in enumerate(limits):
        level = math.ceil(count / (len(limits) - index))
        if level <= limit:
            return level
        count -= limit
    return limits[-1]


def _fill(
    homeless: Sequence[InProgress], loads: dict[str, int], rooms: Mapping[str, int]
) -> tuple[list[RequestMove], list[str]]:
    """Give each to the least loaded engine with room."""
    highest = min(max(rooms.values()), max(loads.values()) + len(homeless))
    levels: list[list[str]] = [[] for _ in range(highest + 1)]
    for name, load in loads.items():
        if load < rooms[name]:
            levels[load].append(name)
    moves: list[RequestMove] = []
    level = 0
    for index, one in enumerate(homeless):
        while level < len(levels) and not levels[level]:
            level += 1
        if level == len(levels):
            return moves, [left.id for left in homeless[index:]]
        name = levels[level].pop()
        if level + 1 < rooms[name]:
            levels[level + 1].append(name)
        if name != one.engine:
            moves.append(RequestMove(one.id, one.version, one.engine, name))
    return moves, []
