"""A lane: one rollout controller's acts on one environment host, many in each call of the host's actor.

A call of an actor costs about a millisecond of CPU, a tool call often a hundredth of it. So the controller's
end (`Lane`) sends whatever acts have come together as one call, and the host's end (`HostEnd`) runs each as
a task of its own and answers as soon as any is done: a slow tool delays nobody. While acts are open, one call
waits at the host for their results; another one that arrives releases it. Two calls in flight are therefore
enough, and new acts wait at most one way there and back.

Acts and results are pickled one by one, so that one that cannot be sent fails alone.
"""

import asyncio
import itertools
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from envs.session import EnvFault

# One waits at the host for results, one brings new acts.
CALLS = 2


@dataclass(frozen=True)
class Load:
    """How busy a host is: `Load("10.0.0.1", 12, 3.5)` has 12 sessions, on a node with 3.5 CPUs idle."""

    node: str
    sessions: int
    idle_cpus: float


@dataclass(frozen=True)
class Answers:
    """Results that a call brings back, as (number of the act, pickled (value, error)); the host's load."""

    done: tuple[tuple[int, bytes], ...]
    load: Load


class HostEnd:
    """The host's end of a lane."""

    def __init__(self, play: Callable[..., Awaitable[Any]]) -> None:
        """`play(method, *arguments)` is one act; what it raises goes back to who asked."""
        self.play = play
        self.done: list[tuple[int, bytes]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        self.calls = 0

    async def exchange(self, acts: tuple[tuple[int, bytes], ...]) -> tuple[tuple[int, bytes], ...]:
        """Begin these acts; the results there are, once there is one. Empty where a later call came."""
        self.calls += 1
        mine = self.calls
        self.changed.set()
        for number, act in acts:
            self.tasks.add(task := asyncio.create_task(self._run(number, act)))
            task.add_done_callback(self.tasks.discard)
        while not self.done and self.calls == mine:
            self.changed.clear()
            await self.changed.wait()
        done, self.done = tuple(self.done), []
        return done

    async def _run(self, number: int, act: bytes) -> None:
        method = "an act"
        outcome: tuple[Any, Exception | None]
        try:
            method, arguments = pickle.loads(act)
            outcome = await self.play(method, *arguments), None
        except asyncio.CancelledError:  # by a close, and nobody waits; or by the environment itself
            outcome = None, EnvFault("reply", f"{method}: the environment cancelled its own task")
        except Exception as error:
            outcome = None, error
        try:
            answer = pickle.dumps(outcome)
        except Exception as error:
            sentence = f"{method}: its result cannot be sent: {type(error).__name__}: {error}"
            answer = pickle.dumps((None, EnvFault("reply", sentence)))
        self.done.append((number, answer))
        self.changed.set()


class Lane:
    """The controller's end of a lane."""

    def __init__(
        self, host: Any, name: str, born: int, heard: Callable[[Load], None] = lambda load: None
    ) -> None:
        """host: an actor's handle. name, born: whose lane it is, and since when (a later one closes what
        an earlier one of the name has left open). `heard(load)` is told the host's load."""
        self.host = host
        self.name = name
        self.born = born
        self.heard = heard
        self.numbers = itertools.count()
        self.unsent: list[tuple[int, bytes]] = []
        self.sent: dict[int, asyncio.Future[Any]] = {}
        self.asked: dict[int, asyncio.Future[Any]] = {}
        self.calls = 0
        self.epoch = 0  # grows when the host is lost: so is what was sent before, and the calls
        self.tasks: set[asyncio.Task[None]] = set()

    async def ask(self, method: str, *arguments: Any) -> Any:
        """One act's result, or what it raised. Raises RayError where the host died under it."""
        return await self._put(method, arguments)

    def tell(self, method: str, *arguments: Any) -> None:
        """An act whose result nobody waits for."""
        self._put(method, arguments).cancel()

    def _put(self, method: str, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        number, answer = next(self.numbers), loop.create_future()
        self.unsent.append((number, pickle.dumps((method, arguments))))
        self.asked[number] = answer
        if len(self.unsent) == 1:
            # What is asked in this turn of the event loop goes together.
            loop.call_soon(self._send)
        return answer

    def _send(self) -> None:
        """Send what has come together, or wait for results where nobody does."""
        if self.calls >= CALLS or not (self.unsent or (self.sent and not self.calls)):
            return
        acts, self.unsent = tuple(self.unsent), []
        for number, _ in acts:
            self.sent[number] = self.asked.pop(number)
        self.calls += 1
        call = self.host.exchange.remote(self.name, self.born, acts)
        self.tasks.add(task := asyncio.create_task(self._receive(call, self.epoch)))
        task.add_done_callback(self.tasks.discard)

    async def _receive(self, call: Awaitable[Answers], epoch: int) -> None:
        try:
            answers = await call
        except Exception as error:
            if epoch == self.epoch:
                self._lost(error)
            return
        if epoch == self.epoch:
            self.calls -= 1
        self.heard(answers.load)
        for number, answer in answers.done:
            # A host that was only out of reach still answers what counts as lost by now.
            if (asked := self.sent.pop(number, None)) is not None:
                self._settle(asked, *_unpacked(answer))
        self._send()

    def _lost(self, error: Exception) -> None:
        """The host died, or is out of reach: every act that was sent is lost."""
        self.epoch += 1
        self.calls = 0
        lost, self.sent = self.sent, {}
        for answer in lost.values():
            self._settle(answer, None, error)
        self._send()

    @staticmethod
    def _settle(answer: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
        if answer.done():  # whoever asked is gone
            return
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(error)


def _unpacked(answer: bytes) -> tuple[Any, Exception | None]:
    try:
        return pickle.loads(answer)
    except Exception as error:
        sentence = f"its result cannot be read: {type(error).__name__}: {error}"
        return None, EnvFault("reply", sentence)
