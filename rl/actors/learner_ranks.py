"""The learner of several ranks as one actor: every call goes to all of them, rank 0's answer is the answer.

They compute together, so a rank that fails alone leaves the others waiting for it. The first failure ends the
call; what is left of the ranks ends with the run, or after `timeouts.step_seconds` by itself.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Generic, ParamSpec, TypeVar

from ray.exceptions import RayActorError, RayError

from rl.actors.actor_method import Handle, RemoteMethod
from rl.actors.learner import LearnerActor
from rl.nodes.process import first_line

P = ParamSpec("P")
T = TypeVar("T")

# Seconds for which a failure waits for the others': a rank that died is the cause of what they say.
GRACE_SECONDS = 5.0


class RankError(RayError):
    """A rank failed; the message is one sentence that names it."""


class LearnerRanks:
    """Stands for the ranks' handles where a run has the handle of one learner."""

    def __init__(self, ranks: Sequence[Handle[LearnerActor]]) -> None:
        """ranks: rank 0 first."""
        # What rank 0 has found on its node, the others can fetch from there.
        self.lost = OnAllRanks([ranks[0].lost])
        self.step = OnAllRanks([rank.step for rank in ranks])
        self.record = OnAllRanks([rank.record for rank in ranks])
        self.snapshot = OnAllRanks([rank.snapshot for rank in ranks])
        self.publish = OnAllRanks([rank.publish for rank in ranks])
        self.save = OnAllRanks([rank.save for rank in ranks])
        self.load = OnAllRanks([rank.load for rank in ranks])
        self.saved = OnAllRanks([rank.saved for rank in ranks])


class OnAllRanks(Generic[P, T]):
    """Calls one method on every rank."""

    def __init__(self, methods: Sequence[RemoteMethod[P, T]]) -> None:
        self.methods = methods

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Call it on all ranks, in the order in which the run calls; await the answer of rank 0.

        Raises what all ranks raised alike, or RankError.
        """
        answers = [method.remote(*args, **kwargs) for method in self.methods]
        return asyncio.ensure_future(self._answer(answers))

    async def _answer(self, answers: Sequence[Awaitable[T]]) -> T:
        calls = [asyncio.ensure_future(answer) for answer in answers]
        try:
            done, others = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            first = min((calls.index(c) for c in done if c.exception()), default=None)
            if first is None:
                return calls[0].result()
            if others:
                await asyncio.wait(others, timeout=GRACE_SECONDS)
            raise self._failure([_error(call) for call in calls], first)
        finally:
            for call in calls:
                call.cancel()

    def _failure(self, errors: Sequence[BaseException | None], first: int) -> BaseException:
        """Choose the error to raise among the ranks' errors; `first` was there first."""
        dead = [rank for rank, error in enumerate(errors) if isinstance(error, RayActorError)]
        if dead:
            return RankError(f"rank {dead[0]} of the learner (learner-{dead[0]}.log) died")
        sentences = [None if error is None else first_line(error) for error in errors]
        if len(set(sentences)) == 1 and errors[0] is not None:
            return errors[0]
        return RankError(
            f"rank {first} of the learner (learner-{first}.log) failed: {sentences[first]}"
        )


def _error(call: asyncio.Future[T]) -> BaseException | None:
    return call.exception() if call.done() and not call.cancelled() else None
