"""Records of calls to a service, and how one fails."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["answered", "cached", "fault", "nonsense", "refused", "cancelled"]


class ServiceFault(Exception):
    """The service did not answer: no connection, no answer in time, overloaded, an error of its own.

    seconds: after which it wants to be asked again, where it has said so. busy: it has too much to do, which
    is no fault of this question.
    """

    def __init__(self, sentence: str, seconds: float = 0.0, *, busy: bool = False) -> None:
        super().__init__(sentence)
        self.seconds = seconds
        self.busy = busy


class NoApi(ServiceFault):
    """An answer that is no API's of models, such as a web page: a wrong address, or a proxy's notice."""


class Refused(Exception):
    """The service answered that it will not do this: a wrong key, an unknown model, a request too long.

    status: of HTTP, 0 where it was not sent.
    """

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Call:
    """One request to a service, or one answer out of the cache, for events.jsonl (unix seconds).

    said: what went wrong, or "".
    """

    start: float
    end: float
    outcome: Outcome
    tokens: int = 0
    said: str = ""
