"""Watches the frozen models of a run: their state for status.json, their calls for events.jsonl.

A service that does not answer holds nobody up: its last state stays, and says so.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from ray.exceptions import RayError

from rl.actors.actor_method import Handle
from rl.actors.model_service import ModelActor, ModelReport
from rl.nodes.deadline import within
from rl.nodes.process import first_line
from rl.record.journal import Journal
from rl.record.model_state import ModelState

ANSWER_SECONDS = 2.0


class ModelWatch:
    """The frozen models of one run, as its loop sees them."""

    def __init__(self, models: Mapping[str, Handle[ModelActor]], journal: Journal) -> None:
        self.models = models
        self.journal = journal
        self.states = {name: ModelState(name=name) for name in models}
        self._resting: set[str] = set()

    async def look(self) -> tuple[ModelState, ...]:
        """Ask every service what it has done since the last look, and write that down."""
        await asyncio.gather(*(self._ask(name, actor) for name, actor in self.models.items()))
        return tuple(self.states.values())

    def metrics(self) -> dict[str, float]:
        """`drift/MODEL/anchors` of each reward model whose anchors were looked at."""
        return {
            f"drift/{name}/anchors": state.anchors
            for name, state in self.states.items()
            if state.anchors is not None
        }

    async def _ask(self, name: str, actor: Handle[ModelActor]) -> None:
        try:
            self._hear(name, await within(actor.report.remote(), ANSWER_SECONDS))
        except TimeoutError:
            self.states[name] = replace(self.states[name], said="its actor does not answer")
        except RayError as error:
            said = f"its actor is gone: {first_line(error)}"
            self.states[name] = replace(self.states[name], said=said)

    def _hear(self, name: str, report: ModelReport) -> None:
        state = self.states[name] = report.state
        for sentence in report.said:
            self.journal.say(f"model {name}", sentence)
        rests, rested = state.breaker != "closed", name in self._resting
        if rests and not rested:
            self._resting.add(name)
            sentence = f"model {name!r} rests after faults: {state.said}; calls are held"
            self.journal.say(f"model {name}", sentence)
        elif rested and not rests:
            self._resting.discard(name)
            self.journal.say(f"model {name}", f"model {name!r} answers again")
        for call in report.calls:
            details = {"said": call.said} if call.said else {}
            tokens = {"tokens": call.tokens} if call.tokens else {}
            self.journal.folder.event(
                f"model {name}", call.outcome, call.start, call.end, **tokens, **details
            )
