"""A request that moves between two engine processes half-way writes what it would have written.

Its cache moves with it: what the other engine computes again is one token, by that engine's own count.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import Remote

from rl.engine_pool import EnginePool
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Completion, Request
from rollout.vllm_engine import VllmEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(280)]

PROMPT = tuple(20 + 7 * i % 300 for i in range(64))
TOKENS = 120
BLOCK = 16


class Watched:
    """An engine that writes down what it was asked and what it answered."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.seen: list[tuple[Request, Completion]] = []
        # Stands between the engines: what the receiving one is told.
        self.change: Callable[[Request], Request] = lambda request: request
        self.handle = SimpleNamespace(
            generate=Remote(self.generate), interrupt=Remote(engine.interrupt)
        )

    async def generate(self, request: Request) -> Completion:
        request = self.change(request)
        completion = await self.engine.generate(request)
        self.seen.append((request, completion))
        return completion

    def computed_again(self) -> int:
        """Tokens of the last prompt that the engine computed."""
        request, completion = self.seen[-1]
        return len(request.prompt_ids) - completion.cached_tokens


@asynccontextmanager
async def two_engines(checkpoint: str, caches: str) -> AsyncIterator[dict[str, Watched]]:
    config = EngineConfig(max_model_len=256, max_num_seqs=8)
    greedy = SamplingConfig(top_p=1e-6)
    engines = {
        n: VllmEngine(n, checkpoint, config, greedy, (), seed=0, caches=caches) for n in "ab"
    }
    try:
        for engine in engines.values():
            await engine.llm.update_weight_version("0")
        yield {name: Watched(engine) for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.shutdown()


@pytest.mark.parametrize("family", ["longcat_flash", "qwen3_moe"])
def test_the_greedy_continuation_is_the_same_as_unmoved(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    asyncio.run(_move(str(checkpoints[family]), tmp_path))


async def _move(checkpoint: str, caches: Path) -> None:
    async with two_engines(checkpoint, str(caches)) as engines:
        a, b = engines["a"], engines["b"]
        for engine in engines.values():
            await engine.generate(Request("warm-up", "warm-up", PROMPT[::-1], 8))
        pool = EnginePool({name: one.handle for name, one in engines.items()}, 120)
        start = time.perf_counter()
        await pool.serve({"a": 0})
        pool.begin("stays", 0)
        unmoved = await pool.generate(Request("stays/0", "stays", PROMPT, TOKENS))
        seconds = (time.perf_counter() - start) / 3

        async def move(name: str) -> Completion:
            """A completion that was at engine a for so long and ended at b."""
            await pool.leave(["b"], {})
            await pool.serve({"a": 0})
            pool.begin(name, 0)
            turn = asyncio.create_task(pool.generate(Request(f"{name}/0", name, PROMPT, TOKENS)))
            while not pool.running:
                await asyncio.sleep(0.01)
            await asyncio.sleep(seconds)
            left = time.perf_counter()
            await pool.leave(["a"], {})
            print(f"left after {time.perf_counter() - left:.3f} s")
            await pool.serve({"b": 0})
            completion = await turn
            first = len(a.seen[-1][1].token_ids)
            print(name, first, b.computed_again(), time.perf_counter() - left)
            assert 0 < first < TOKENS, "it was under way when it moved"
            assert completion.token_ids == unmoved.token_ids
            assert len(completion.logprobs) == TOKENS
            assert completion.engine == "b" and [v.version for v in completion.versions] == [0]
            assert list(caches.iterdir()) == [], "no file is left"
            return completion

        await move("moves")
        assert b.computed_again() <= BLOCK
        assert pool.prefilled_again == 0

        def lose(request: Request) -> Request:
            Path(request.cache).unlink()
            return request

        b.change = lose
        await move("loses")
        assert a.seen[-1][1].cache
        print(pool.prefilled_again)

        await b.engine.llm.pause_generation(mode="keep", clear_cache=True)
        await b.engine.llm.resume_generation()
        b.change = lambda request: replace(request, cache=request.cache)
        b.engine.version = 1
        await move("differs")
        print(pool.prefilled_again)
