"""`EngineActor`: one vLLM engine in a Ray actor. It ends itself when vLLM's own processes have died."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil

from rl.actors.actor_method import actor_method
from rl.actors.heartbeat import Heartbeat, IdleTime, own_heartbeat
from rl.actors.rpc import Address, RpcServer
from rl.config import RunConfig
from rl.nodes.node_folder import node_folder
from rl.nodes.nodes import own_address, own_node
from rl.nodes.process import log_to
from rollout.engine import Completion, Request
from rollout.vllm_engine import LoadTimes, VllmEngine

# Seconds between two looks at vLLM's own processes.
DEAD_SECONDS = 1.0

T = TypeVar("T")


class EngineActor:
    """One vLLM engine in an actor of its own."""

    def __init__(
        self,
        name: str,
        checkpoint: str,
        config: RunConfig,
        eos_ids: tuple[int, ...],
        log: str,
        caches: str,
    ) -> None:
        """caches: the folder in whose part of this node requests that move leave their caches, or "" where
        none move."""
        log_to(log)
        self.caches = node_folder(caches, own_node()) if caches else None
        if self.caches:
            self.caches.mkdir(parents=True, exist_ok=True)
        from rollout.vllm_adapter import Adapters

        seed = config.seed_of(config.seed * 1000 + int(name.rpartition("-")[2]))
        lora = config.learner.lora
        adapters = Adapters(lora.rank, lora.alpha, lora.targets) if lora else None
        served = "prometheus" in config.trackers.use
        # vLLM counts for its own metrics only where it logs them.
        vllm = ({"disable_log_stats": False} if served else {}) | config.engine.vllm
        self.write_metrics: Callable[[], None] | None = None
        if served:
            from rl.actors.engine_metrics import EngineMetrics

            self.write_metrics = EngineMetrics(Path(log).parent.parent, name).write
        self.engine = VllmEngine(
            name,
            checkpoint,
            config.engine.model_copy(update={"vllm": vllm}),
            config.sampling,
            eos_ids,
            seed,
            str(self.caches or ""),
            adapters,
        )
        self.idle = IdleTime()
        alone = config.cluster.address == "local"
        self._listen("127.0.0.1" if alone else own_address())
        # While vLLM is to be alive.
        self.watching: asyncio.Task[None] | None = None

    def _listen(self, node: str) -> None:
        """Take controllers' connections at an address of this node, once they ask where."""
        self.node = node
        self.server = RpcServer(self._act, _nothing_left, lambda: None)

    @actor_method
    async def start(self) -> None:
        """Run a first request."""
        await self.engine.start()
        self.watching = asyncio.create_task(self._end_when_dead())

    async def _end_when_dead(self) -> None:
        """Without vLLM's own processes this one is of no use; that it ends is what everybody notices."""
        while not self.engine.dead:
            await asyncio.sleep(DEAD_SECONDS)
        self._end()

    def _end(self, why: str = "it has died") -> None:
        print(f"vLLM: {why}: this engine ends", file=sys.stderr, flush=True)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os._exit(1)

    async def _done(self, act: Awaitable[T]) -> T:
        """Await an act of vLLM's and return its result. A dead vLLM is no error of the act's, but this
        engine's end."""
        try:
            return await act
        except Exception:
            if self.engine.dead and self.watching is not None:
                self._end()
            raise

    @actor_method
    async def address(self) -> Address:
        """Where controllers' connections are taken. Raises OSError."""
        return await self.server.address(self.node)

    async def _act(self, owner: str, method: str, request: Request) -> Completion:
        if method != "generate":
            raise ValueError(f"{method}: an engine has no such act")
        return await self.generate(request)

    @actor_method
    async def generate(self, request: Request) -> Completion:
        """One turn. A cache that lies on another node is not read."""
        if request.cache and Path(request.cache).parent != self.caches:
            request = replace(request, cache="")
        with self.idle.request():
            return await self._done(self.engine.generate(request))

    @actor_method
    async def heartbeat(self) -> Heartbeat:
        """Answer with the room in the cache, and the spans without a request since the last heartbeat."""
        if self.write_metrics is not None:
            self.write_metrics()
        beat = own_heartbeat(self.idle.take())
        return replace(beat, cache_tokens=self.engine.cache_tokens)

    @actor_method
    async def pulse(self) -> None:
        """Answer once vLLM's own process has: that one may hang while this one is well."""
        await self._done(self.engine.pulse())

    @actor_method
    async def drop(self, cache: str) -> None:
        """Remove a cache that this engine left and that no request will bring here."""
        Path(cache).unlink(missing_ok=True)

    @actor_method
    async def interrupt(self, ids: Sequence[str]) -> None:
        """End these requests with what they have written."""
        await self.engine.interrupt(ids)

    @actor_method
    async def abort(self, ids: Sequence[str]) -> None:
        """End requests that nobody waits for."""
        await self.engine.abort(ids)

    @actor_method
    async def stage(self, path: str, version: int) -> float:
        """Make weights ready while requests go on. Returns milliseconds."""
        return await self._done(self.engine.stage(path, version))

    @actor_method
    async def load(self, path: str, version: int) -> LoadTimes:
        """Change to the weights in `path`; those that were not staged are staged first."""
        return await self._done(self.engine.load(path, version))

    @actor_method
    async def sleep(self) -> None:
        """Give up the device; requests in progress wait."""
        await self._done(self.engine.sleep())

    @actor_method
    async def wake(self) -> None:
        """Take the device back, and go on."""
        await self._done(self.engine.wake())

    @actor_method
    async def end(self) -> None:
        """End vLLM's processes, which may hang, and this one."""
        self._end("it hangs")

    @actor_method
    async def shutdown(self) -> None:
        """End vLLM's own processes."""
        if self.watching is not None:
            self.watching.cancel()
            self.watching = None
        self.engine.shutdown()


async def _nothing_left(owner: str) -> None:
    """A controller that is gone has opened nothing here; what it asked for is written to its end."""
