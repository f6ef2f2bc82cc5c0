"""One frozen model as a service: its pool, the wire, and the server where it has a checkpoint.

Knows no Ray: `rl.actors.model_service` has one in an actor of a run, `dorado judge` one in its own process.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from envs.chat_model import ChatAnswer, ChatRequest
from rl.model_table import ModelTable
from rl.models.anchors import Anchors
from rl.models.call import Call, NoApi, Refused, ServiceFault
from rl.models.chat_wire import ChatWire
from rl.models.logprob_wire import LogprobWire
from rl.models.pool import Pool
from rl.models.score_wire import ScoreWire
from rl.models.server import Server, ServerFailed
from rl.models.sleep import Sleeper
from rl.record.model_state import ModelState
from trainer.reward_scores import read_scores

# Requests in a row that a server has to leave unanswered to be called deaf.
LEAST_FAULTS = 2
# For the first look at a server at a URL.
LOOK_SECONDS = 10.0


class ModelService:
    """One frozen model that answers, whatever serves it (`envs.chat_model.ChatModel`)."""

    def __init__(self, table: ModelTable, key: str, log: Path, say: Callable[[str], None]) -> None:
        """key: of a server at a URL. log: of a server of its own. say: hears a sentence of each change."""
        self.table = table
        self.say = say
        scores = table.use == "reward"
        self.server: Server | None = None
        if table.path:
            self.server = Server(table.name, table.path, table.serve, log, say, scores=scores)
        self.wire = self._wire(table.url or "", key, table.model)
        self.sleeper: Sleeper | None = None
        if seconds := table.serve.sleep_seconds:
            self.sleeper = Sleeper(
                seconds,
                lambda path: self.wire.asked("POST", path),
                lambda said: say(f"model {table.name!r}: {said}"),
            )
        self.pool = Pool(table, self._send)
        self.anchors = self._anchors(say)
        self._watching: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """The name in the settings."""
        return self.table.name

    async def start(self) -> None:
        """Start what serves the model, and wait until it answers. Raises ServerFailed.

        A server at a URL is looked at: one that does not take the key, or is none, is refused; one that is
        away now may be there when it is needed.
        """
        if self.server is None:
            await self._look()
            return
        self.server.start()
        await self.server.ready()
        self.wire = self._wire(self.server.url, self.server.key, self.server.model)
        self._watching.append(asyncio.create_task(self._watch(self.server)))
        if self.anchors is not None:
            looks = self.anchors.watch(self.table.anchor_seconds, lambda: self._asleep)
            self._watching.append(asyncio.create_task(looks))
        if self.sleeper is not None:
            self.sleeper.restarted()
            self._watching.append(asyncio.create_task(self.sleeper.watch()))

    async def _look(self) -> None:
        """Ask a server at a URL for its models. Raises ServerFailed where no call can succeed."""
        table, served = self.table, list[object]()
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                served = (await self.wire.asked("GET", "/models")).get("data") or []
        except Refused as refused:
            if refused.status in (401, 403):
                which = f"is {table.key_env} right" if table.key_env else "name its key (key_env)"
                raise ServerFailed(f"it lets nobody in: {refused}; {which}") from None
            if not table.model:
                raise ServerFailed(f"it names no models: {refused}; is its url right?") from None
        except NoApi as error:
            raise ServerFailed(f"it is no API of models: {error}; is its url right?") from None
        except (ServiceFault, TimeoutError) as error:
            why = str(error) or f"no answer within {LOOK_SECONDS:g} s"
            self.say(f"model {table.name!r} is away ({why}); it is asked when it is needed")
        names = [one["id"] for one in served if isinstance(one, dict) and "id" in one]
        if names and table.model and table.model not in names:
            offered = ", ".join(map(str, names[:5]))
            self.say(f"model {table.name!r}: its server offers {offered}, and not {table.model!r}")

    async def _send(self, request: ChatRequest) -> ChatAnswer:
        if self.sleeper is None:
            return await self.wire.send(request)
        async with self.sleeper.awake():
            return await self.wire.send(request)

    @property
    def _asleep(self) -> bool:
        return self.sleeper is not None and self.sleeper.asleep

    def _back(self) -> None:
        """Hear that the server is there again."""
        if self.sleeper is not None:
            self.sleeper.restarted()
        self.pool.back()

    def _anchors(self, say: Callable[[str], None]) -> Anchors | None:
        """The anchors of a reward model's folder, where it has some."""
        if self.table.use != "reward" or not self.table.path:
            return None
        training = read_scores(Path(self.table.path))
        return Anchors(self, training, say) if training and training.anchors else None

    def _wire(self, url: str, key: str, model: str) -> ChatWire | ScoreWire | LogprobWire:
        if self.table.use == "score":
            return LogprobWire(url, key=key, model=model)
        if self.table.use == "reward":
            return ScoreWire(
                url, key=key, model=model, folder=self.table.path or "", heads=self.table.heads
            )
        return ChatWire(url, key=key, model=model)

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the model's answer. Raises ModelFault."""
        return await self.pool.ask(request)

    def state(self) -> ModelState:
        """How it stands."""
        line = self.server.line if self.server else ""
        state = replace(self.pool.state(), server=f"{line}{', asleep' if self._asleep else ''}")
        if self.anchors is None:
            return state
        return replace(state, anchors=self.anchors.distance, moved=self.anchors.moved)

    def take_calls(self) -> list[Call]:
        """The calls since the last time."""
        return self.pool.take_calls()

    async def close(self) -> None:
        """Give up what is being asked, and end the server."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self.pool.close()
        await self.wire.close()
        if self.server is not None:
            await asyncio.to_thread(self.server.end)

    async def _watch(self, server: Server) -> None:
        """Keep the server alive; where it cannot be, calls are held and then fail by the pool's own clock."""
        with suppress(ServerFailed):
            await server.watch(self._is_stuck, self._back)

    def _is_stuck(self) -> bool:
        """True where requests have ended at their deadlines, several times over, and nobody was answered."""
        longest = 2.5 * self.table.request_seconds
        return self.pool.unanswered >= LEAST_FAULTS and self.pool.silent > longest
