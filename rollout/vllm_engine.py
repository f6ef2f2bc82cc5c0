"""One vLLM engine: tokens in, tokens out with log-probs and versions; weights staged, then changed.

The asynchronous loop of vLLM runs in processes of its own; this class lives in the process of an
engine actor. What it asks of vLLM is in `rollout.vllm_arguments`.
"""

import asyncio
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout.compile_cache import CompileCache, check_compiler, user_cache
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Completion, EngineFault, Request, VersionSpan
from rollout.families.registry import routing_layout
from rollout.routing import Routing
from rollout.vllm_adapter import Adapters, loading, on_adapter
from rollout.vllm_arguments import (
    engine_arguments,
    engine_config,
    moves_cache,
    prepare_process,
    rolls_over,
)
from rollout.vllm_core_process import begun_early
from rollout.weight_file import slices_of

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.lora.request import LoRARequest

    from rollout.cache_file import CacheFile

# An interrupted request's cache is written in the engine's next step: what takes longer has gone wrong.
_WRITE_SECONDS = 30.0
_LOOK_SECONDS = 0.002
# Between two questions whether a rolling change of weights is over.
_ROLLING_SECONDS = 0.02


@dataclass(frozen=True)
class LoadTimes:
    """One change of weights, in ms. pause: requests stood still; swap: the part of it that changed weights.

    staging: the weights were made ready so long before the pause, 0 where they had been.
    """

    pause_ms: float
    swap_ms: float
    staging_ms: float


class VllmEngine:
    """One engine on one set of weights at a time."""

    def __init__(
        self,
        name: str,
        checkpoint: str,
        config: EngineConfig,
        sampling: SamplingConfig,
        eos_ids: tuple[int, ...],
        seed: int,
        caches: str = "",
        adapters: Adapters | None = None,
    ) -> None:
        """caches: the folder in which caches of requests that move are left, or "" for none.

        adapters: what later versions are, where they are no whole weights.
        """
        self.began = time.perf_counter()
        if config.compile:
            check_compiler()
        self.compiled = CompileCache(user_cache()) if config.compile else None
        prepare_process(config, self.compiled)
        self.name = name
        self.config = config
        self.sampling = sampling
        self.eos_ids = eos_ids
        self.version = 0
        self.moves_cache = bool(caches) and moves_cache(config)
        self.caches = Path(caches)
        # Where each running request would leave its cache.
        self.files: dict[str, CacheFile] = {}
        # Held by a weight update or an interruption: a cache is of the version that its order names.
        self._weights = asyncio.Lock()
        self._loading = False
        # Held while a set of weights is staged, and until it is changed to: there is room for one.
        self._staging = asyncio.Lock()
        self._staged: int | None = None
        # Whether vLLM's session of an update is open.
        self._updating = False
        # Whether some request may be on the weights of before the last change.
        self._rolling = False
        self.adapters = adapters
        # What requests run on, once there is one.
        self.adapter: LoRARequest | None = None
        with begun_early() if config.device == "cpu" else nullcontext():
            from vllm.v1.engine.async_llm import AsyncLLM

            arguments = engine_arguments(
                checkpoint, config, seed, move_cache=self.moves_cache, adapters=adapters
            )
            self.llm = AsyncLLM.from_vllm_config(
                engine_config(arguments), disable_log_stats=arguments["disable_log_stats"]
            )
        hf_config = self.llm.model_config.hf_text_config
        self.routing = routing_layout(hf_config) if config.capture_routing else None

    async def start(self) -> None:
        """Name the first weights version 0 and run one request, which loads the lazy kernels.

        Keeps what has been compiled, and prints what the start took.
        """
        await self.llm.update_weight_version("0")
        await self.generate(Request("warm-up", "warm-up", (self.eos_ids[0],), 2))
        if self.compiled is not None:
            new, seconds = self.compiled.keep(), time.perf_counter() - self.began
            how = f"{new} libraries compiled" if new else "with what an earlier start compiled"
            said = f"engine started in {seconds:.1f} s, {how}: {self.compiled.kept}"
            print(said, file=sys.stderr, flush=True)

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values the cache has room for."""
        cache = self.llm.vllm_config.cache_config
        return (cache.num_gpu_blocks or 0) * cache.block_size

    @property
    def dead(self) -> bool:
        """True if vLLM has given up, say because its process is gone: nothing will work any more."""
        return self.llm.errored

    async def pulse(self) -> None:
        """Return once vLLM's process has answered, between two of its steps. Raises what vLLM does."""
        await self.llm.get_weight_version()

    async def generate(self, request: Request) -> Completion:
        """Generate one turn. Raises EngineFault where the engine is dead."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = request.sampling or self.sampling
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=request.max_tokens,
            stop_token_ids=[*self.eos_ids, *sampling.stop_token_ids],
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=self._cache_arguments(request),
            routed_experts_prompt_start=request.num_routed if self.routing else 0,
        )
        prompt = tokens_input(list(request.prompt_ids))
        final: RequestOutput | None = None
        try:
            stream = self.llm.generate(prompt, parameters, request.id, lora_request=self.adapter)
            async for output in stream:
                final = output
        except EngineDeadError as error:
            raise EngineFault(f"engine {self.name} is dead: {error}") from error
        finally:
            file = self.files.pop(request.id, None)
        if final is None:
            raise EngineFault(f"engine {self.name} returned nothing for request {request.id}")
        cache = ""
        if file and final.outputs[0].finish_reason == "abort":
            writing = asyncio.create_task(_written(file))
            try:
                cache = await asyncio.shield(writing)
            except asyncio.CancelledError:
                # Nobody will ask for it any more.
                writing.add_done_callback(lambda _: file.path.unlink(missing_ok=True))
                raise
        return self._completion(final, cache)

    def _cache_arguments(self, request: Request) -> dict[str, Any]:
        """Arguments that tell the connector about a request. A request that comes while the weights change
        gets no cache: nothing says yet which version it begins on.
        """
        if not self.moves_cache:
            return {}
        from rollout.cache_file import CacheFile
        from rollout.cache_transfer import CacheParams

        file = CacheFile(self.caches / f"cache-{uuid.uuid4().hex}")
        self.files[request.id] = file
        load = "" if self._loading else request.cache
        params = CacheParams(save=str(file.path), load=load, version=self.version)
        return {"kv_transfer_params": params}

    async def interrupt(self, ids: Sequence[str]) -> None:
        """End these requests now; each returns what it has written, with finish reason `abort`.

        Each leaves its cache for the engine it goes on at. Of a dead engine its requests speak themselves.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self._weights:
            try:
                await self.settled()
            except EngineDeadError:
                return
            files = [self.files[id] for id in ids if id in self.files]
            for file in files:
                file.ask(self.version)
            try:
                await self.hand_out()
                await self.llm.abort(list(ids))
                if files:
                    # Its answer means that it has seen the abort, and taken up the orders that it will.
                    await self.llm.get_weight_version()
            except EngineDeadError:
                return
            finally:
                for file in files:
                    file.withdraw()

    async def abort(self, ids: Sequence[str]) -> None:
        """End requests that nobody waits for; they leave nothing."""
        await self.llm.abort(list(ids))

    async def stage(self, path: str, version: int) -> float:
        """Make the weights in `path` ready to be changed to, while requests go on. Returns milliseconds.

        vLLM's processes convert them a slice at a time between two steps. Raises FileNotFoundError where
        there is no such file, RuntimeError where it does not fill the model.
        """
        async with self._staging:
            await self.settled()
            return await self._stage(path, version)

    async def _stage(self, path: str, version: int) -> float:
        if self._staged == version or self.adapters is not None:
            return 0.0  # An adapter is small: all of it is loaded in the pause.
        start = time.perf_counter()
        slices = slices_of(Path(path))
        if not self._updating:
            await self.llm.start_weight_update()
        # A slice that fails ends vLLM's session.
        self._staged, self._updating = None, False
        for index, names in enumerate(slices):
            await self._update({"path": path, "names": names, "first": index == 0})
        # Converting takes half as long as loading; in place it is a part of the swap.
        parts = (len(slices) + 1) // 2 if self.config.device == "cpu" else 0
        for part in range(1, parts + 1):
            await self._update({"path": path, "names": [], "converted": part / parts})
        self._staged, self._updating = version, True
        return 1e3 * (time.perf_counter() - start)

    async def _update(self, info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.llm.update_weights(WeightTransferUpdateRequest(update_info=info))

    async def load(self, path: str, version: int) -> LoadTimes:
        """Change to the weights in `path`, called `version`; requests in progress wait and go on.

        Stages them first where that has not been done. The caches of requests in progress are of the old
        weights: unless `EngineConfig.update` says keep_cache they are dropped, all of them now, or (rolling)
        one after the other once this has returned, and the prefixes computed again. Every log-prob is then
        exactly that of the version it is said to be of. Requests that began before an engine's first adapter
        go on without one.
        """
        async with self._staging:
            await self.settled()
            staging_ms = await self._stage(path, version)
            async with self._weights:
                start = time.perf_counter()
                self._loading = True
                rolls, core = rolls_over(self.config, self.adapters), self.llm.engine_core
                clear = not rolls and self.config.update != "keep_cache"
                # `pause_generation` would sleep 20 ms more, for outputs that are on their way.
                await core.pause_scheduler_async(mode="keep", clear_cache=clear)
                try:
                    await self.hand_out()
                    paused = time.perf_counter()
                    change = self._flip if self.adapters is None else self._change_adapter
                    await change(path, version)
                    if rolls:
                        self._rolling = bool(await core.call_utility_async("begin_rolling"))
                    swapped = time.perf_counter()
                finally:
                    await self.llm.resume_generation()
                self.version, self._loading = version, False
        pause = time.perf_counter() - start
        return LoadTimes(1e3 * pause, 1e3 * (swapped - paused), staging_ms)

    async def hand_out(self) -> None:
        """Fetch what requests have written so far into this process, under the version that it is of."""
        from rollout.vllm_final_outputs import HAND_OUT

        written: dict[str, int] = await self.llm.engine_core.call_utility_async(HAND_OUT)
        states: Any = self.llm.output_processor.request_states
        while not self.dead and any(
            states[id].detokenizer.num_output_tokens() < count
            for id, count in written.items()
            if id in states
        ):
            await asyncio.sleep(0)

    async def settled(self) -> None:
        """Return once every request is on the newest weights: nothing else needs the older ones then."""
        while self._rolling:
            self._rolling = bool(await self.llm.engine_core.call_utility_async("older_requests"))
            if self._rolling:
                await asyncio.sleep(_ROLLING_SECONDS)

    async def _flip(self, path: str, version: int) -> None:
        """To the staged weights, which came from `path`."""
        self._staged, self._updating = None, False
        await self.llm.finish_weight_update(str(version))

    async def _change_adapter(self, path: str, version: int) -> None:
        assert self.adapters is not None, "an engine that was started for adapters"
        with loading(Path(path), self.adapters) as adapter:
            await self.llm.add_lora(adapter)
        await self.llm.update_weight_version(str(version))
        self.adapter = on_adapter()

    async def sleep(self) -> None:
        """Give up the device: requests in progress wait, their caches are dropped and computed again later.

        On GPUs vLLM's sleep mode also takes the weights to host memory (`engine.vllm.enable_sleep_mode`).
        """
        if self.config.device == "cpu":
            await self.llm.pause_generation(mode="keep", clear_cache=True)
        else:
            await self.llm.sleep(level=1, mode="keep")

    async def wake(self) -> None:
        """Take the device back; requests go on."""
        if self.config.device == "cpu":
            await self.llm.resume_generation()
        else:
            await self.llm.wake_up()

    def shutdown(self) -> None:
        """End vLLM's processes."""
        self.llm.shutdown(timeout=5)
        if self.compiled is not None:
            self.compiled.close()

    def _completion(self, output: "RequestOutput", cache: str) -> Completion:
        best = output.outputs[0]
        ids = tuple(best.token_ids)
        flat: Any = best.logprobs
        # Of a token's entries the first is the drawn one's.
        values = tuple(flat.logprobs[entry] for entry in flat.start_indices) if flat else ()
        spans = tuple(
            VersionSpan(int(s.version), s.start, s.end) for s in best.weight_versions or []
        )
        reason = best.finish_reason
        return Completion(
            token_ids=ids,
            logprobs=values,
            versions=spans,
            finish_reason=reason if reason in ("stop", "length") else "abort",
            engine=self.name,
            cached_tokens=output.num_cached_tokens or 0,
            cache_block=self.llm.vllm_config.cache_config.block_size,
            cache=cache,
            routing=self._routing(best.routed_experts),
        )

    def _routing(self, rows: Any) -> Routing | None:
        """Convert vLLM's choices, of the layers that have a router, to our type; None where capture is
        off."""
        if self.routing is None:
            return None
        if rows is None:  # The request was interrupted before its first token.
            return self.routing.unknown(0)
        if rows.shape[1] != len(self.routing.layers):
            rows = rows[:, list(self.routing.layers)]
        return rows.astype(self.routing.dtype, copy=False)


async def _written(file: "CacheFile") -> str:
    """The path of an interrupted request's cache once it is complete, "" where there will be none."""
    give_up = time.monotonic() + _WRITE_SECONDS
    while file.expected():
        if time.monotonic() > give_up:
            file.withdraw()
            file.drop()
        await asyncio.sleep(_LOOK_SECONDS)
    return str(file.path) if file.path.exists() else ""
