"""A request that moves between two engine processes half-way writes what it would have written.

Its cache moves with it: what the other engine computes again is one token, by that engine's own count.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rl.actors.engine import EngineActor
from rl.actors.engine_client import EngineClient
from rl.actors.local_handle import local_handle
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Completion, Request
from rollout.vllm_engine import VllmEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROMPT = tuple(20 + 7 * i % 300 for i in range(64))
TOKENS = 200
WRITTEN = 40
BLOCK = 16


class Watched(EngineActor):
    """An engine that writes down what it was asked and what it answered."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.seen: list[tuple[Request, Completion]] = []
        # Stands between the engines: what the receiving one is told.
        self.change: Callable[[Request], Request] = lambda request: request
        self.handle = local_handle(self)

    async def generate(self, request: Request) -> Completion:
        request = self.change(request)
        completion = await self.engine.generate(request)
        self.seen.append((request, completion))
        return completion


async def has_written(one: Watched) -> None:
    """Returns once a request is well under way, and far from its end."""
    states = one.engine.llm.output_processor.request_states
    while not any(
        state.detokenizer and state.detokenizer.num_output_tokens() >= WRITTEN
        for state in states.values()
    ):
        await asyncio.sleep(0.005)
        await one.engine.hand_out()


def computed_again(one: Watched) -> int:
    """Tokens of the last prompt that the engine computed."""
    request, completion = one.seen[-1]
    return len(request.prompt_ids) - completion.cached_tokens


@asynccontextmanager
async def two_engines(checkpoint: str, caches: str) -> AsyncIterator[dict[str, Watched]]:
    config = EngineConfig(max_model_len=384, max_num_seqs=8)
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


@pytest.mark.parametrize(
    "family", [pytest.param("longcat_flash", marks=pytest.mark.smoke), "qwen3_moe"]
)
def test_the_greedy_continuation_is_the_same_as_unmoved(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    asyncio.run(_moves(checkpoints[family], tmp_path))


async def _moves(checkpoint: Path, caches: Path) -> None:
    async with two_engines(str(checkpoint), str(caches)) as engines:
        a, b = engines["a"], engines["b"]
        for one in engines.values():
            await one.generate(Request("warm-up", "warm-up", PROMPT[::-1], 8))
        unmoved = await a.generate(Request("stays", "stays", PROMPT, TOKENS))

        moved, again = await _leave_half_way(engines)
        _assert_same(moved, unmoved)
        assert computed_again(b) <= BLOCK, "by the count of the engine"
        assert again == 0, "the last token's keys and values were nowhere yet"
        assert list(caches.iterdir()) == [], "no file is left"

        b.change = lose
        await b.engine.llm.reset_prefix_cache()
        moved, again = await _leave_half_way(engines)
        _assert_same(moved, unmoved)
        request = b.seen[-1][0]
        assert computed_again(b) == len(request.prompt_ids) == again + 1
        assert list(caches.iterdir()) == []

        await _another_version_refuses(a, checkpoint, unmoved)
        await _only_moves_leave_a_file(a, caches)


async def _leave_half_way(engines: dict[str, Watched]) -> tuple[Completion, int]:
    """A completion that began at engine a and ended at b, and what the pool counted."""
    pool = EngineClient({name: one.handle for name, one in engines.items()}, request_seconds=120)
    pool.begin("moves", 0)
    await pool.serve({"a": 0})
    turn = asyncio.create_task(pool.generate(Request("moves/0", "moves", PROMPT, TOKENS)))
    await has_written(engines["a"])
    await pool.leave(["a"], {})
    await pool.serve({"b": 0})
    completion = await turn
    first = len(engines["a"].seen[-1][1].token_ids)
    assert 0 < first < TOKENS, "it was under way when it moved"
    assert engines["b"].seen[-1][0].prompt_ids == PROMPT + completion.token_ids[:first]
    return completion, pool.reprefilled_tokens


def _assert_same(moved: Completion, unmoved: Completion) -> None:
    assert moved.token_ids == unmoved.token_ids
    assert moved.logprobs == pytest.approx(unmoved.logprobs, abs=1e-4)
    assert moved.engine == "b" and [v.version for v in moved.versions] == [0]
    assert len(moved.token_ids) == TOKENS and moved.cache == ""


async def _another_version_refuses(one: Watched, checkpoint: Path, unmoved: Completion) -> None:
    """A cache of version 0 is not loaded by version 1; a request that stays goes on through the change."""
    turn = asyncio.create_task(one.generate(Request("left", "x", PROMPT, TOKENS)))
    await has_written(one)
    await one.engine.interrupt(["left"])
    first = await turn
    rest = Request("goes on", "x", PROMPT + first.token_ids, TOKENS - len(first.token_ids))
    assert Path(first.cache).is_file()
    # With a prompt of its own: what is computed again for it is nothing that the other could find.
    other = await one.generate(Request("alone", "y", PROMPT[::-1], TOKENS))
    running = asyncio.create_task(one.generate(Request("waits", "y", PROMPT[::-1], TOKENS)))
    await has_written(one)
    await one.engine.load(str(checkpoint / "model.safetensors"), 1)
    completion = await one.generate(replace(rest, cache=first.cache))
    assert completion.cached_tokens < len(rest.prompt_ids) - BLOCK
    assert first.token_ids + completion.token_ids == unmoved.token_ids
    through = await running
    assert through.token_ids == other.token_ids
    assert [span.version for span in through.versions] == [0, 1]
    assert Path(first.cache).is_file(), "the caller's to remove"
    Path(first.cache).unlink()


async def _only_moves_leave_a_file(one: Watched, caches: Path) -> None:
    turn = asyncio.create_task(one.generate(Request("dies", "x", PROMPT, TOKENS)))
    await has_written(one)
    await one.engine.llm.abort(["dies"])
    completion = await turn
    assert (completion.finish_reason, completion.cache) == ("abort", "")
    await one.engine.interrupt(["never was here"])
    assert list(caches.iterdir()) == []


def lose(request: Request) -> Request:
    """The request, and no file any more."""
    Path(request.cache).unlink()
    return request
