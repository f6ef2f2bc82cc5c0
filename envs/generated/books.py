"""Books of a world: what it keeps beside its rows, and how it says no.

Flows out: `Books`, a frozen record, so that a world can come back to an earlier one, and `Refused`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from envs.generated.domain import Row
from envs.generated.expression import Need, Value

Rows = dict[str, list[Row]]
Arguments = Mapping[str, object]
Fact = tuple[str, str, str]  # entity, id, field; "" for the row itself, id "" for all rows
Key = tuple[str, str]  # entity, id
BUSY = "busy, nothing was done: try again"
FIRST_NEW = 1000
NO_ROW = "-"  # what is confirmed of an act that is on no row


class Refused(Exception):
    """A call that the world does not carry out. need: the comparison that does not hold, if that is why."""

    def __init__(self, sentence: str, need: Need | None = None, permission: str = "") -> None:
        super().__init__(sentence)
        self.need = need
        self.permission = permission


@dataclass(frozen=True)
class Later:
    """A change that is still to come."""

    due: int
    key: Key
    field: str
    value: Value


@dataclass(frozen=True)
class Books:
    """The state that a world keeps beside its rows. before: rows that changed, as they were; None: there was
    none. acts: calls that a rule wants confirmed, and whether they were."""

    before: dict[Key, Row | None] = field(default_factory=dict[Key, Row | None])
    confirmed: frozenset[tuple[str, str]] = frozenset()
    granted: frozenset[str] = frozenset()
    acts: tuple[tuple[str, str, bool], ...] = ()
    later: tuple[Later, ...] = ()
    hour: int = 0
    made: int = FIRST_NEW
    faults: Counter[str] = field(default_factory=Counter[str])
