"""Hand-overs: what plugins return, as the plain values that records, wires and sums can hold.

In: whatever an environment's or a judge's act returned. Out: named rewards as finite Python floats, facts
as text, messages. Refuses, with a TypeError of one sentence, what is none of these: the plugin's fault.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import TypeVar, cast

from envs.dynamic_tool import DynamicTool
from envs.message import Message
from envs.text import encodable, shown

T = TypeVar("T")
# Ten parts of 0.1 add up to 0.9999999999999999.
_ROUNDING = 1e-9


async def result_of(name: str, act: Callable[[], object]) -> object:
    """Begin an act of the protocol, and await it. Raises TypeError where it is a plain `def`, and what it
    raises itself."""
    begun = act()
    if not inspect.isawaitable(begun):
        raise TypeError(f"{name}() has to be written as `async def {name}`")
    return await begun


def named_rewards(value: object, act: str) -> dict[str, float]:
    """Rewards by name; numbers of numpy, torch and the like become Python's. Raises TypeError."""
    return {name: _finite(name, one) for name, one in _by_name(value, act).items()}


def _by_name(value: object, act: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{act} has to return named rewards, not {shown(value)}")
    found: dict[str, object] = {}
    for name, one in cast(Mapping[object, object], value).items():
        if not isinstance(name, str):
            raise TypeError(f"a reward's name has to be text, not {shown(name)}")
        found[encodable(name)] = one
    return found


def full_reward(reward: float) -> bool:
    """True if a reward is all that there is to win: at least 1, but for the rounding of a sum of parts."""
    return reward >= 1 - _ROUNDING


class NamedRewards(dict[str, float]):
    """Rewards of an episode by name; `by_turn` says which parts of them turns have earned.

    by_turn: turn -> name -> part; the turns that the environment saw, from 0. What no turn has earned comes
    with the end. E.g. {"solved": 1.0, "found": 0.5} with by_turn {0: {"found": 0.5}}.
    """

    def __init__(
        self, rewards: Mapping[str, float], by_turn: Mapping[int, Mapping[str, float]] | None = None
    ) -> None:
        super().__init__(rewards)
        self.by_turn = {turn: dict(parts) for turn, parts in (by_turn or {}).items()}


def episode_rewards(
    value: object, given: Sequence[tuple[int, str, float]], turns: int
) -> NamedRewards:
    """Totals of what `score()` returned and of what `reward()` gave to turns. Raises TypeError.

    value: by name a number, or numbers by turn, such as {"solved": 1.0, "found": {0: 0.5}}. given: turn, name
    and number. turns: so many the environment has seen.
    """
    totals: dict[str, float] = {}
    by_turn: dict[int, dict[str, float]] = {}

    def add(turn: int | None, name: str, part: float) -> None:
        totals[name] = _finite(name, totals.get(name, 0.0) + part)
        if turn is not None:
            parts = by_turn.setdefault(turn, {})
            parts[name] = _finite(name, parts.get(name, 0.0) + part)

    for name, one in _by_name(value, "score()").items():
        if not isinstance(one, Mapping):
            add(None, name, _finite(name, one))
            continue
        totals.setdefault(name, 0.0)
        for given_turn, part in cast(Mapping[object, object], one).items():
            turn = _plain(given_turn)
            if not isinstance(turn, int) or isinstance(turn, bool) or not 0 <= turn < turns:
                raise TypeError(
                    f"reward {name!r} of turn {shown(turn)}: this episode had {turns} turns; write "
                    f'{{"{name}": {{self.turn_index: 0.5}}}} with the number that turn_index had in the turn'
                )
            add(turn, name, _finite(name, part))
    for turn, name, part in given:
        add(turn, name, part)
    return NamedRewards(totals, by_turn)


def turn_reward(name: object, value: object) -> tuple[str, float]:
    """The name and the number that an environment gives to `reward()`. Raises TypeError."""
    [(known, number)] = named_rewards({name: value}, "reward()").items()
    return known, number


def _finite(name: str, value: object) -> float:
    try:
        number = value if isinstance(value, int | float) else _plain(value)
        if isinstance(number, Real | Decimal) and math.isfinite(number):
            return float(number)
    except Exception:  # `item` and `__float__` are other people's code
        pass
    raise TypeError(f"reward {name!r} has to be a finite number, not {shown(value)}")


def _plain(value: object) -> object:
    """The one number of an array, a tensor or a scalar of theirs; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) else value


def facts(value: object) -> dict[str, str]:
    """Facts for the record as text by name. Raises TypeError."""
    if not isinstance(value, Mapping):
        raise TypeError(f"notes have to be facts by name, not {shown(value)}")
    found = cast(Mapping[object, object], value).items()
    return {encodable(str(name)): encodable(str(one)) for name, one in found}


def messages(value: object, act: str) -> tuple[Message, ...]:
    """The messages that an act hands to the policy. Raises TypeError."""
    wanted = f'{act} has to return a list of messages, such as [Message("user", "...")]'
    return _all_of(Message, value, wanted)


def offered_tools(value: object) -> tuple[DynamicTool, ...]:
    """The tools that are known only at reset. Raises TypeError."""
    return _all_of(DynamicTool, value, "dynamic_tools() has to return a list of DynamicTools")


def _all_of(kind: type[T], value: object, wanted: str) -> tuple[T, ...]:
    """The members of a list, each of this kind. Raises TypeError, which says what is wanted."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{wanted}, not {shown(cast(object, value))}")
    found = tuple(cast(Iterable[object], value))
    for one in found:
        if not isinstance(one, kind):
            raise TypeError(f"{wanted}; one of them is {shown(one)}")
    return cast(tuple[T, ...], found)
