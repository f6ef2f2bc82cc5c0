"""The pool in front of one service: queue, retries, deadline, breaker, cache, budget, record of calls.

In: questions of any number of askers. Out: an answer each, or ModelFault with a reason; never nothing.

An asker waits: for an equal question that is being asked already, for its turn (`rl.models.turns`), for the
answer. The deadline of a request begins when it is sent. A request that fails by no fault of its own is sent
again: `retries` times while the service answers others, and for `hold_seconds` while it answers nobody.
"""

import asyncio
import itertools
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from envs.chat_model import ChatAnswer, ChatRequest, ModelFault
from rl.model_table import ModelTable
from rl.models.call import Call, Outcome, Refused, ServiceFault
from rl.models.structured import fitting
from rl.models.turns import Turns
from rl.record.model_state import ModelState

Send = Callable[[ChatRequest], Awaitable[ChatAnswer]]
# Between a fault and the next try, doubled each time.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
# Of a question that is asked again, as its answer did not fit.
AGAIN_TEMPERATURE = 0.7
# Calls that are remembered until somebody writes them down; beyond it the oldest are forgotten.
MOST_CALLS = 100_000


class Pool:
    """The askers of one service in this process."""

    def __init__(
        self,
        table: ModelTable,
        send: Send,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """send: one request over the wire; raises ServiceFault, Refused. clock: in seconds."""
        self.table = table
        self.name = table.name
        self.send = send
        self.clock = clock
        self.turns = Turns(table.concurrency, table.breaker, clock)
        self.answered_at = clock()
        self.asked_since = clock()
        # Faults since the last answer, and what those who pause after one wait for.
        self.unanswered = 0
        self._back = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.said = ""
        self._cache: OrderedDict[str, ChatAnswer] = OrderedDict()
        self._asked: dict[str, _Asked] = {}
        self._once = itertools.count()
        self._calls: deque[Call] = deque(maxlen=MOST_CALLS)

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the answer. Raises ModelFault."""
        key = request.key if request.keep and self.table.cache else f"once-{next(self._once)}"
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return self._from_cache(known)
        asked, first = self._asked.get(key), False
        if asked is None:
            if not self._asked:
                self.asked_since = self.clock()
            asked, first = _Asked(asyncio.create_task(self._answer(request, key))), True
            self._asked[key] = asked
            asked.task.add_done_callback(partial(self._done, key, asked))
        asked.askers += 1
        try:
            answer = await asyncio.shield(asked.task)
        finally:
            asked.askers -= 1
            if not asked.askers:
                asked.task.cancel()
                # Who asks now asks anew.
                self._forget(key, asked)
        return answer if first else self._from_cache(answer)

    @property
    def silent(self) -> float:
        """Seconds without any answer while some are asked for."""
        since = max(self.answered_at, self.asked_since)
        return self.clock() - since if self._asked else 0.0

    def back(self) -> None:
        """Whatever serves the model is there again: who pauses after a fault asks now."""
        self.unanswered = 0
        self.asked_since = self.clock()
        self._back.set()
        self._back = asyncio.Event()

    def take_calls(self) -> list[Call]:
        """The calls since the last time, oldest first."""
        taken = list(self._calls)
        self._calls.clear()
        return taken

    def state(self) -> ModelState:
        """How the service stands, for status.json."""
        table, counts = self.table, self.counts
        return ModelState(
            name=self.name,
            breaker=self.turns.state,
            waiting=self.turns.waiting,
            running=len(self.turns.running),
            calls=counts["sent"],
            cached=counts["cached"],
            faults=counts["fault"],
            nonsense=counts["nonsense"],
            failed=counts["failed"],
            tokens=counts["tokens"],
            calls_left=table.max_calls - counts["sent"] if table.max_calls else None,
            tokens_left=max(0, table.max_tokens - counts["tokens"]) if table.max_tokens else None,
            silent=round(self.silent, 1),
            said=self.said,
        )

    async def close(self) -> None:
        """Give up what is being asked."""
        self.turns.close()
        tasks = [asked.task for asked in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: str, asked: "_Asked") -> None:
        if self._asked.get(key) is asked:
            del self._asked[key]

    def _done(self, key: str, asked: "_Asked", task: asyncio.Task[ChatAnswer]) -> None:
        self._forget(key, asked)
        if not task.cancelled():
            task.exception()  # nobody may be left to hear of it

    def _from_cache(self, answer: ChatAnswer) -> ChatAnswer:
        self.counts["cached"] += 1
        now = time.time()
        self._note(now, "cached")
        return replace(answer, cached=True)

    async def _answer(self, request: ChatRequest, key: str) -> ChatAnswer:
        """Ask until there is an answer that fits."""
        try:
            answer = await self._fitting(request)
        except ModelFault as fault:
            self.counts["failed"] += 1
            self.said = str(fault)
            raise
        if not key.startswith("once-"):
            self._cache[key] = answer
            while len(self._cache) > self.table.cache:
                self._cache.popitem(last=False)
        return answer

    async def _fitting(self, request: ChatRequest) -> ChatAnswer:
        """Ask again while answers do not fit the schema. Raises ModelFault."""
        answer, left = await self._sent(request), self.table.nonsense
        if request.schema is None:
            return answer
        while (text := fitting(answer.text, request.schema)) is None:
            if not left:
                cut = ", cut off by max_tokens" if answer.cut else ""
                raise ModelFault(
                    f"model {self.name!r}: {self.table.nonsense + 1} answers did not fit the schema, the "
                    f"last was {answer.text[:100]!r}{cut}"
                )
            # The most likely tokens would be the same again.
            answer, left = await self._sent(_warmer(request)), left - 1
        return replace(answer, text=text)

    async def _sent(self, request: ChatRequest) -> ChatAnswer:
        """Send a request, again and again where the service is at fault."""
        own, pause, begun, said = 0, FIRST_PAUSE, self.clock(), ""
        while True:
            turn = await self._turn(request, begun, said)
            sent = self.clock()
            try:
                return await self._once_sent(request, turn)
            except ServiceFault as fault:
                self.said = said = str(fault)
                # Others were answered meanwhile: it may be this question that the service cannot answer.
                own += self.answered_at > sent and not fault.busy
            if own > self.table.retries:
                raise ModelFault(f"model {self.name!r}: failed {own} times, at last: {said}")
            if (left := self._held_until(begun)) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(pause, LONGEST_PAUSE, left)):
                        await self._back.wait()
            pause *= 2

    def _held_until(self, begun: float) -> float:
        """Seconds for which a call that began then may still be held."""
        return max(begun, self.answered_at) + self.table.hold_seconds - self.clock()

    async def _turn(self, request: ChatRequest, begun: float, said: str) -> str:
        """Wait for a turn as long as the service answers somebody."""
        while True:
            self._check_budget()
            if (left := self._held_until(begun)) <= 0:
                said = said or (self.said if self.unanswered else "")
                raise ModelFault(
                    f"model {self.name!r}: no answer to anybody for {self.table.hold_seconds:g} s"
                    f"{f', at last: {said}' if said else ''}"
                )
            try:
                turn = await self.turns.wait(request.priority, left)
            except TimeoutError:
                continue
            try:
                self._check_budget()
            except ModelFault:
                self.turns.give_up(turn)
                raise
            return turn

    async def _once_sent(self, request: ChatRequest, turn: str) -> ChatAnswer:
        """One request, with its deadline and its records. Raises ServiceFault, ModelFault."""
        table, start = self.table, time.time()
        self.counts["sent"] += 1
        try:
            async with asyncio.timeout(table.request_seconds):
                answer = await self.send(request)
        except (ServiceFault, TimeoutError) as error:
            late = f"no answer within {table.request_seconds:g} s"
            fault = error if isinstance(error, ServiceFault) else ServiceFault(late)
            # Before the turn ends, which is another one's chance.
            self.turns.rest(min(fault.seconds, table.hold_seconds))
            self.turns.end(turn, fault=True)
            self.counts["fault"] += 1
            self.unanswered += 1
            self._note(start, "fault", said=str(fault))
            raise fault from None
        except Refused as refused:
            self.answered_at = self.clock()
            self.turns.end(turn, fault=False)
            self._note(start, "refused", said=str(refused))
            raise ModelFault(f"model {self.name!r}: {refused}") from None
        except BaseException as error:
            self.turns.give_up(turn)
            self._note(start, "cancelled", said=type(error).__name__)
            raise
        self.answered_at = self.clock()
        if self.unanswered:
            self.back()
        self.turns.end(turn, fault=False)
        tokens = answer.prompt_tokens + answer.completion_tokens
        self.counts["tokens"] += tokens
        nonsense = request.schema is not None and fitting(answer.text, request.schema) is None
        self.counts["nonsense"] += nonsense
        self._note(start, "nonsense" if nonsense else "answered", tokens)
        return answer

    def _check_budget(self) -> None:
        table, counts = self.table, self.counts
        for what, spent, most in (
            ("calls", counts["sent"], table.max_calls),
            ("tokens", counts["tokens"], table.max_tokens),
        ):
            if most and spent >= most:
                raise ModelFault(
                    f"model {self.name!r}: its budget of {most:,} {what} is spent (models.max_{what})"
                )

    def _note(self, start: float, outcome: Outcome, tokens: int = 0, said: str = "") -> None:
        self._calls.append(Call(start, time.time(), outcome, tokens, said))


def _warmer(request: ChatRequest) -> ChatRequest:
    return replace(request, temperature=max(request.temperature, AGAIN_TEMPERATURE))


class _Asked:
    """A question that is being asked, and how many wait for its answer."""

    def __init__(self, task: asyncio.Task[ChatAnswer]) -> None:
        self.task = task
        self.askers = 0
