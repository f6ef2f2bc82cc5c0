"""A request that moves between two engine processes half-way writes what it would have written."""

import asyncio
import time
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


@pytest.mark.parametrize("family", ["longcat_flash", "qwen3_moe"])
def test_the_greedy_continuation_is_the_same_as_unmoved(
    family: str, checkpoints: dict[str, Path]
) -> None:
    asyncio.run(_move(str(checkpoints[family])))


async def _move(checkpoint: str) -> None:
    config = EngineConfig(max_model_len=256, max_num_seqs=8)
    greedy = SamplingConfig(top_p=1e-6)
    engines = {n: VllmEngine(n, checkpoint, config, greedy, (), seed=0) for n in "ab"}
    try:
        for engine in engines.values():
            await engine.llm.update_weight_version("0")
        pool = EnginePool(
            {
                name: SimpleNamespace(
                    generate=Remote(engine.generate), interrupt=Remote(engine.interrupt)
                )
                for name, engine in engines.items()
            },
            request_seconds=120,
        )
        await pool.serve({"a": 0})
        pool.begin("stays", 0)
        await pool.generate(Request("warm-up", "stays", PROMPT, 8))
        start = time.perf_counter()
        unmoved = await pool.generate(Request("stays/0", "stays", PROMPT, TOKENS))
        moved, first = await _leave_half_way(pool, (time.perf_counter() - start) / 3)
        assert moved.token_ids == unmoved.token_ids
        assert len(moved.token_ids) == len(moved.logprobs) == TOKENS
        assert moved.engine == "b" and [v.version for v in moved.versions] == [0]
        assert 0 < first < TOKENS, "it was under way when it moved"
        assert pool.prefilled_again == len(PROMPT) + first
    finally:
        for engine in engines.values():
            engine.shutdown()


async def _leave_half_way(pool: EnginePool, seconds: float) -> tuple[Completion, int]:
    """A completion that was at engine a for so long and ended at b, and how much of it a wrote."""
    pool.begin("moves", 0)
    turn = asyncio.create_task(pool.generate(Request("moves/0", "moves", PROMPT, TOKENS)))
    while not pool.running:
        await asyncio.sleep(0.01)
    await asyncio.sleep(seconds)
    await pool.leave(["a"], {})
    await pool.serve({"b": 0})
    completion = await turn
    return completion, pool.in_progress()[-1].tokens - len(PROMPT)
