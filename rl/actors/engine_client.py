"""The engines as one controller sees them: who serves which version, and where each trajectory's cache is.

A turn goes to an engine that serves the trajectory's version: the one that holds its earlier turns, unless
it is clearly busier. An engine that changes version is left first: its requests are interrupted, keep what
they have written, and go on at another engine of the same version. Their caches go with them; what did not
arrive is computed again, and counted. An engine that cannot be reached, or did not answer a turn in time,
gets no turns until it answers again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ray.exceptions import ActorDiedError, RayActorError, RayError

from rl.actors.actor_method import Handle
from rl.actors.engine import EngineActor
from rl.actors.engine_wires import EngineWires
from rl.nodes.deadline import within
from rl.nodes.process import cause
from rl.samples.cache_use import CacheUse, later_use, opening_use
from rollout.engine import Completion, EngineFault, Request, VersionSpan
from rollout.placement import InProgress
from rollout.routing import joined_routing

# An abort that overtakes its request is not heard: it is said again after so long.
_AGAIN_SECONDS = 0.05
# Between two tries to reach an engine that could not be reached.
_REACH_SECONDS = 0.5


class EngineMapMissing(Exception):
    """A controller that was started anew has not heard yet which engine serves which version."""


@dataclass
class _Session:
    """One trajectory's place: pinned version (None: whatever is served), home engine, context length.

    holder: the engine that holds the keys and values of its first `computed` tokens, or "" since it left;
    wrote: the version of the last one that it wrote.
    """

    version: int | None
    engine: str = ""
    tokens: int = 0
    holder: str = ""
    computed: int = 0
    wrote: int | None = None


class EngineClient:
    """Generates turns for the trajectories of one controller."""

    def __init__(
        self,
        engines: Mapping[str, Handle[EngineActor]],
        request_seconds: float,
        wires: EngineWires | None = None,
    ) -> None:
        """wires: what turns travel by; where there are none, by Ray."""
        self.engines = dict(engines)
        self.wires = wires
        self.request_seconds = request_seconds
        self.serves: dict[str, int | None] = {}
        self.sessions: dict[str, _Session] = {}
        self.branches: dict[str, list[str]] = {}
        self.loads = dict.fromkeys(engines, 0)
        self.running: dict[str, tuple[str, str]] = {}
        self.asked: dict[str, float] = {}
        self.asleep: set[str] = set()
        self.slept: Counter[str] = Counter()
        self.interrupted: set[str] = set()
        # Engines that died, and those that cannot be reached now, with who waits for them to answer.
        self.gone: set[str] = set()
        self.away: dict[str, asyncio.Task[None]] = {}
        self.reprefilled_tokens = 0
        self.cache_use = CacheUse()
        self.has_engine_map = False
        self._changed = asyncio.Condition()

    def add(self, engines: Mapping[str, Handle[EngineActor]]) -> None:
        """Add engines (handles by name); what they serve is told later."""
        self.engines |= engines
        self.loads |= dict.fromkeys(engines, 0)

    def check_engine_map(self) -> None:
        """Raises EngineMapMissing before the first `serve`: whoever waited for an engine would wait in
        vain."""
        if not self.has_engine_map:
            raise EngineMapMissing("this controller has not heard which engine serves what")

    def begin(self, session: str, version: int | None) -> None:
        """A trajectory begins; all its turns go to engines of `version`."""
        self.sessions[session] = _Session(version)

    def branch(self, session: str, parent: str) -> None:
        """A trajectory goes on in another segment, `ID~1` beside `ID`, on the version of its parent."""
        there = self.sessions[parent]
        self.sessions[session] = _Session(there.version, there.engine)
        self.branches.setdefault(session.partition("~")[0], []).append(session)

    def end(self, session: str) -> None:
        """A trajectory is over, with all its segments."""
        for one in (session, *self.branches.pop(session, ())):
            self.sessions.pop(one, None)

    def contexts(self) -> dict[str, int]:
        """Count the tokens of all trajectories at each engine: what its cache would hold at best."""
        tokens: Counter[str] = Counter()
        for session in self.sessions.values():
            if session.engine:
                tokens[session.engine] += session.tokens
        return dict(tokens)

    def in_progress(self) -> list[InProgress]:
        """Where every trajectory is, those in a tool included."""
        return [
            InProgress(id, one.version, one.engine, one.tokens)
            for id, one in self.sessions.items()
            if one.version is not None
        ]

    async def serve(self, versions: Mapping[str, int | None]) -> None:
        """Note which version each engine serves from now on; None: it sleeps, and no new turn goes there."""
        async with self._changed:
            self.has_engine_map = True
            self.serves |= {name: v for name, v in versions.items() if name not in self.gone}
            self.asleep -= versions.keys()
            self.asleep |= {name for name, version in versions.items() if version is None}
            self.slept.update(self.asleep)
            self._forget_caches(self.asleep)
            self._changed.notify_all()

    async def lose(self, engines: Iterable[str]) -> None:
        """Forget engines that have died: no turn goes there any more, and their caches went with them."""
        self.gone.update(engines)
        for name in self.gone & self.serves.keys():
            del self.serves[name]
            if self.wires is not None:
                self.wires.drop(name)
        self._forget_caches(self.gone)

    async def leave(self, engines: Iterable[str], moves: Mapping[str, str]) -> None:
        """Take every request away from these engines, and trajectories to new homes (id -> engine).

        Returns when no request of this controller is left where it should not be.
        """
        leaving = set(engines)
        for name in leaving:
            self.serves[name] = None
        self._forget_caches(leaving)
        for id, target in moves.items():
            if id in self.sessions:
                self.sessions[id].engine = target
        # What goes on has another id and is not asked again, wherever it then finds the shortest queue.
        wrong = {
            id
            for id, (name, session) in self.running.items()
            if name in leaving or moves.get(session, name) != name
        }
        while misplaced := [id for id in wrong if id in self.running]:
            self.interrupted.update(misplaced)
            places: dict[str, list[str]] = {}
            for id in misplaced:
                places.setdefault(self.running[id][0], []).append(id)
            await asyncio.gather(
                *(self._interrupt(name, ids) for name, ids in places.items()),
                asyncio.sleep(_AGAIN_SECONDS),
            )

    def _forget_caches(self, engines: Collection[str]) -> None:
        for session in self.sessions.values():
            session.holder = "" if session.holder in engines else session.holder

    async def generate(self, request: Request) -> Completion:
        """One turn, in as many pieces as it takes. Raises EngineFault."""
        pieces: list[Completion] = []
        rest, before = request, ""
        if request.begins:  # the cache of the segment before is nobody's any more
            session = self.sessions[request.session]
            session.holder, session.computed = "", 0
        while True:
            piece = await self._piece(rest, before)
            pieces.append(piece)
            before = piece.engine
            if piece.finish_reason != "abort" or rest.id not in self.interrupted:
                break
            self.interrupted.discard(rest.id)
            left = rest.max_tokens - len(piece.token_ids)
            if left <= 0:
                self._drop(piece.cache, piece.engine)
                pieces[-1] = replace(piece, finish_reason="length")
                break
            rest = replace(
                rest,
                id=f"{request.id}+{len(pieces)}",
                prompt_ids=rest.prompt_ids + piece.token_ids,
                max_tokens=left,
                cache=piece.cache,
                num_routed=rest.num_routed + (0 if piece.routing is None else len(piece.routing)),
            )
        self.interrupted.discard(rest.id)
        return joined(pieces)

    async def _piece(self, request: Request, before: str) -> Completion:
        """One request at one engine. The cache it brings, which engine `before` has left, is used up,
        whatever becomes of the request."""
        session = self.sessions[request.session]
        try:
            name = await self._choose(session)
            session.engine, session.tokens = name, len(request.prompt_ids)
            completion = await self._at(name, request)
        finally:
            self._drop(request.cache, before)
        self._note_cache(session, name, request, completion)
        if session.holder != name:
            self.reprefilled_tokens += max(0, session.computed - completion.cached_tokens)
        session.holder = "" if completion.finish_reason == "abort" else name
        # The last token is the next piece's to compute.
        session.computed = len(request.prompt_ids) + len(completion.token_ids) - 1
        return completion

    def _note_cache(
        self, session: _Session, name: str, request: Request, completion: Completion
    ) -> None:
        """Count what the engine found in its cache, where nothing has come between two turns."""
        if not completion.versions:
            return
        if not session.computed:
            self.cache_use += opening_use(request.prompt_ids, completion)
        elif session.holder == name and session.wrote == completion.versions[0].version:
            self.cache_use += later_use(session.computed, completion)
        session.wrote = completion.versions[-1].version

    async def _at(self, name: str, request: Request) -> Completion:
        self.running[request.id] = (name, request.session)
        self.loads[name] += 1
        engine = self.engines[name]
        asked = (
            self.wires.generate(name, engine, request)
            if self.wires
            else engine.generate.remote(request)
        )
        answer = asyncio.ensure_future(asked)
        try:
            while True:
                slept, self.asked[request.id] = self.slept[name], time.time()
                try:
                    return await within(asyncio.shield(answer), self.request_seconds)
                except TimeoutError:
                    # An engine that slept meanwhile has all its time again; one that is left has not.
                    if name not in self.asleep and self.slept[name] == slept:
                        raise
        except TimeoutError:
            self._abort(name, request)
            self._set_aside(name)
            raise EngineFault(
                f"engine {name} did not answer within {self.request_seconds:g} s"
            ) from None
        except EngineFault as error:
            raise cause(error) from None
        except ActorDiedError:
            await self.lose([name])
            raise EngineFault(f"engine {name} died") from None
        except RayActorError:
            self._set_aside(name)
            raise EngineFault(f"engine {name} could not be reached") from None
        except asyncio.CancelledError:
            self._abort(name, request)
            raise
        finally:
            answer.cancel()
            self.loads[name] -= 1
            del self.running[request.id], self.asked[request.id]

    def _set_aside(self, name: str) -> None:
        """Turns would fail there one after the other: none until it answers, or Ray says that it died."""
        if name not in self.away:
            self.away[name] = asyncio.create_task(self._reach(name))

    async def _reach(self, name: str) -> None:
        while name not in self.gone:
            try:
                await within(self.engines[name].pulse.remote(), self.request_seconds)
                break
            except ActorDiedError:
                await self.lose([name])
            except (TimeoutError, RayError):
                await asyncio.sleep(_REACH_SECONDS)
        async with self._changed:
            del self.away[name]
            self._changed.notify_all()

    def _abort(self, name: str, request: Request) -> None:
        """Nobody waits for this any more: the engine need not write on."""
        self.engines[name].abort.remote([request.id])

    async def _choose(self, session: _Session) -> str:
        """An engine of the session's version; waits while there is none (under the episode's deadline)."""
        async with self._changed:
            while True:
                fitting = {
                    name: self.loads[name]
                    for name, version in self.serves.items()
                    if version is not None
                    and session.version in (None, version)
                    and name not in self.away
                }
                if fitting:
                    return least_loaded(fitting, session.engine)
                await self._changed.wait()

    def _drop(self, cache: str, engine: str) -> None:
        """Remove a cache that `engine` has left, on this node or on its own."""
        if not cache:
            return
        if (file := Path(cache)).parent.is_dir():
            file.unlink(missing_ok=True)
        else:
            self.engines[engine].drop.remote(cache)

    async def _interrupt(self, name: str, ids: list[str]) -> None:
        try:
            await within(self.engines[name].interrupt.remote(ids), self.request_seconds)
        except (TimeoutError, RayActorError):
            # The requests themselves will say that the engine is gone.
            return


def least_loaded(loads: dict[str, int], preferred: str | None) -> str:
    """The engine for a request: the one that holds its earlier turns unless it is clearly busier.

    loads: requests in progress per engine. A move costs a prefill, so it has to be worth two requests.
    """
    best = min(loads, key=lambda name: (loads[name], name))
    if preferred in loads and loads[preferred] <= loads[best] + 2:
        return preferred
    return best


def joined(pieces: list[Completion]) -> Completion:
    """The pieces of one turn as one completion."""
    spans: list[VersionSpan] = []
    offset = 0
    for piece in pieces:
        for span in piece.versions:
            start, end = span.start + offset, span.end + offset
            if spans and spans[-1].version == span.version and spans[-1].end == start:
                spans[-1] = replace(spans[-1], end=end)
            else:
                spans.append(VersionSpan(span.version, start, end))
        offset += len(piece.token_ids)
    return replace(
        pieces[-1],
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(value for piece in pieces for value in piece.logprobs),
        versions=tuple(spans),
        cached_tokens=pieces[0].cached_tokens,
        cache="",
        routing=joined_routing([piece.routing for piece in pieces]),
    )
