"""How a frozen model beside the policy stands, in status.json and in a line of a terminal."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """State of one service.

    waiting, running: calls. calls: requests that were sent. cached: questions that were answered without one.
    faults: requests that the service did not answer. nonsense: answers that did not fit. failed: questions
    that were given up. tokens: read and written. calls_left, tokens_left: of the budget; None: there is none.
    silent: seconds without any answer while some are asked for. server: what serves it, and the process's id;
    "" where it has a url. said: the last thing that went wrong. anchors: of a reward model, how far the
    scores of its anchors are from training's, in standard deviations; None: nobody has looked. moved: why
    that is too far, "" where it is not.
    """

    name: str
    breaker: Literal["closed", "open", "half_open"] = "closed"
    waiting: int = 0
    running: int = 0
    calls: int = 0
    cached: int = 0
    faults: int = 0
    nonsense: int = 0
    failed: int = 0
    tokens: int = 0
    calls_left: int | None = None
    tokens_left: int | None = None
    silent: float = 0.0
    server: str = ""
    said: str = ""
    anchors: float | None = None
    moved: str = ""

    @property
    def line(self) -> str:
        """For a terminal."""
        ways = {"closed": "answers", "open": "rests after faults", "half_open": "is being probed"}
        how = ways[self.breaker]
        if self.breaker == "closed" and self.silent >= 30:
            how = f"has not answered for {self.silent:.0f} s"
        parts = [
            f"{self.name} {how}",
            f"{self.running} running, {self.waiting} waiting",
            f"{self.calls:,} requests ({self.tokens:,} tokens), {self.cached:,} answers from the cache",
        ]
        bad = {"faults": self.faults, "nonsense": self.nonsense, "given up": self.failed}
        parts += [", ".join(f"{count} {what}" for what, count in bad.items() if count)]
        left = {"requests": self.calls_left, "tokens": self.tokens_left}
        parts += [f"{count:,} {what} left" for what, count in left.items() if count is not None]
        parts += [self.server, f"last: {self.said}" if self.said else "", self.moved]
        return "; ".join(part for part in parts if part)
