"""One alert of a run, and where it leads."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Alert:
    """One alert, such as level "warning", text "calculator: 12 % of its trajectories end in a fault; …".

    step: the learner step that it is about; None where it is about none. page: where one looks next, such as
    "trajectories", with the parameters `query`; "" for nowhere.
    """

    level: Level
    text: str
    step: int | None = None
    query: tuple[tuple[str, str], ...] = ()
    page: str = ""
