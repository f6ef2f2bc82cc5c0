"""Names that rows have: pools that a domain's fields draw from, each name with a capital or in quotes when
said.

Flows out: `draw`, distinct names out of a pool. Two words make a name, so that there are some hundred of
each."""

import itertools
import random

_FIRST = (
    "Ada", "Ben", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jana", "Kofi", "Lena",
    "Mira", "Noor", "Otto", "Pia", "Rosa", "Sami", "Tess", "Uma", "Vera", "Wim", "Yuri", "Zoe",
)  # fmt: skip
_LAST = (
    "Abel", "Berg", "Costa", "Dunn", "Engel", "Falk", "Gray", "Holm", "Ito", "Jung", "Kerr",
    "Lund", "Marsh", "Novak", "Okoro", "Park", "Quist", "Reyes", "Stone", "Tamm", "Voss", "Wolf",
)  # fmt: skip
_ADJECTIVE = (
    "Amber", "Blue", "Coral", "Dusk", "East", "Fern", "Gold", "High", "Iron", "Jade", "Keen",
    "Lime", "Mild", "North", "Oak", "Pine", "Quiet", "Red", "Silver", "Tall", "Upper", "West",
)  # fmt: skip
_PLACE = ("Hall", "Yard", "Street", "Hill", "Gate", "Point", "Lane", "Park", "Dock", "Square")
_THING = (
    "Lamp", "Drill", "Chair", "Pump", "Cable", "Kettle", "Ladder", "Mixer", "Radio", "Saw",
    "Scale", "Tent", "Valve", "Wheel", "Clock", "Fan",
)  # fmt: skip
_WORK = (
    "Atlas", "Bridge", "Canvas", "Delta", "Echo", "Forest", "Garden", "Harbor", "Island",
    "Journey", "Letter", "Meadow", "Ocean", "River", "Signal", "Tower",
)  # fmt: skip
POOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "people": (_FIRST, _LAST),
    "places": (_ADJECTIVE, _PLACE),
    "things": (_ADJECTIVE, _THING),
    "works": (_ADJECTIVE, _WORK),
}


def draw(pool: str, rng: random.Random, taken: set[str]) -> str:
    """A name of the pool that is not taken yet; it is then. Where the pool is as good as used up, a number
    is added to it."""
    first, last = POOLS[pool]
    for number in itertools.count(1):
        for _ in range(len(first) * len(last)):
            name = f"{rng.choice(first)} {rng.choice(last)}" + (f" {number}" if number > 1 else "")
            if name not in taken:
                taken.add(name)
                return name
    raise AssertionError("numbers do not end")
