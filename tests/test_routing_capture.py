"""The engine's expert choices are those that the learner's model makes on the same tokens.

The reference shares no code with the capture: transformers' own routers, read by hooks, in one pass over each
whole sequence. In float32 engine and learner choose alike but for ties; in bfloat16 they do not, which is why
choices are replayed, and the test prints how often.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import trajectory

from rl.actors.engine_client import joined
from rl.samples.samples import train_sample
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Completion, Request
from rollout.trajectory import Turn
from rollout.vllm_engine import VllmEngine
from trainer.policy import load_policy
from trainer.sample import TrainSample
from trainer.weights import write_checkpoint

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

FAMILIES = ("longcat_flash", "qwen3_moe")
UNKNOWN = 255
# Of a thousand choices, those where two experts' scores lie closer than float32 rounding.
TIES = 0.001


class Reference:
    """The learner's model, and what its routers choose."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_policy(checkpoint, torch.float32).eval()
        self.seen: list[np.ndarray] = []
        routers = [m for m in self.model.modules() if type(m).__name__.lower().endswith("router")]
        for router in routers:
            router.register_forward_hook(
                lambda _module, _input, out: self.seen.append(out[2].numpy())
            )

    @torch.no_grad()
    def choices(self, token_ids: Sequence[int]) -> np.ndarray:
        """Of every token, layer by layer, shape (tokens, layers, experts per token)."""
        self.seen.clear()
        self.model.model(input_ids=torch.tensor([token_ids]), use_cache=False)
        return np.stack(self.seen, axis=1)

    @torch.no_grad()
    def disturbed(self, folder: Path) -> "Reference":
        """A model with other weights, written to `folder`, that chooses differently."""
        torch.manual_seed(3)
        for parameter in self.model.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
        folder.mkdir()
        write_checkpoint(self.model, folder, torch.float32)
        return self


def agreement(captured: np.ndarray, expected: np.ndarray) -> float:
    """Share of tokens and layers whose set of experts is the same."""
    assert captured.shape == expected.shape
    return float((np.sort(captured, -1) == np.sort(expected, -1)).all(-1).mean())


def engine_on(checkpoint: Path, dtype: Any, caches: Path) -> VllmEngine:
    """An engine with less room than its requests ask for: some are preempted, and prompts come in chunks
    where the family allows it (multi-head latent attention does not on CPU)."""
    small = {"num_gpu_blocks_override": 90}
    if checkpoint.name == "qwen3_moe":
        small = {"num_gpu_blocks_override": 48, "block_size": 32, "max_num_batched_tokens": 64}
    config = EngineConfig(
        dtype=dtype,
        max_model_len=384,
        max_num_seqs=12,
        capture_routing=True,
        vllm=small,
    )
    return VllmEngine("a", str(checkpoint), config, SamplingConfig(), (), 0, str(caches))


async def play(engine: VllmEngine, id: int) -> TrainSample:
    """A trajectory of three turns with observations between; four in a row share their opening."""
    rng = random.Random(id)
    opening = random.Random(id // 4)
    prompt = tuple(opening.randrange(20, 300) for _ in range(opening.randint(40, 90)))
    context: tuple[int, ...] = ()
    turns: list[Turn] = []
    for index in range(3):
        context += prompt
        routed = max(0, len(context) - len(prompt) - 1)
        length = rng.randint(8, 56)
        request = Request(f"{id}/{index}", str(id), context, length, num_routed=routed)
        written = await engine.generate(request)
        turns.append(as_turn(prompt, written))
        context += written.token_ids
        prompt = tuple(rng.randrange(20, 300) for _ in range(rng.randint(1, 30)))
    return train_sample(trajectory(str(id), turns=turns), 0.0)


def as_turn(prompt: tuple[int, ...], written: Completion) -> Turn:
    return Turn(
        prompt_ids=prompt,
        completion_ids=written.token_ids,
        rollout_logprobs=written.logprobs,
        versions=written.versions,
        finish_reason=written.finish_reason,
        engine=written.engine,
        text="",
        routing=written.routing,
    )


def captured(sample: TrainSample) -> np.ndarray:
    """A sample's routing but for the last token, of which nobody knows it."""
    assert sample.routing is not None and (sample.routing[-1] == UNKNOWN).all()
    return sample.routing[:-1]


async def agreements(engine: VllmEngine, reference: Reference) -> list[float]:
    """Of trajectories played side by side, so that steps mix prompts, chunks of prompts and single tokens."""
    samples = await asyncio.gather(*(play(engine, id) for id in range(32)))
    shared = []
    for sample in samples:
        expected = reference.choices(sample.token_ids)
        shared.append(agreement(captured(sample), expected[:-1]))
        assert agreement(captured(sample), expected[1:]) < 0.7, "a place further is another choice"
    return shared


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_the_engine_chooses_what_the_learner_chooses(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    asyncio.run(_float32(checkpoints[family], tmp_path))


async def _float32(checkpoint: Path, folder: Path) -> None:
    caches = folder / "caches"
    caches.mkdir()
    engine = engine_on(checkpoint, "float32", caches)
    reference = Reference(checkpoint)
    try:
        await engine.llm.update_weight_version("0")
        shared = await agreements(engine, reference)
        print(checkpoint.name, "float32", np.mean(shared))
        assert np.mean(shared) >= 1 - TIES
        await _interrupted(engine, reference)
        # Last, for the engine has other weights then.
        await _across_an_update(engine, checkpoint, folder / "next")
    finally:
        engine.shutdown()


async def under_way(engine: VllmEngine, written: int) -> None:
    """Returns once a request has written so much."""
    states = engine.llm.output_processor.request_states
    while not any(
        s.detokenizer and s.detokenizer.num_output_tokens() >= written for s in states.values()
    ):
        await asyncio.sleep(0.002)
        await engine.hand_out()


async def _interrupted(engine: VllmEngine, reference: Reference) -> None:
    """Pieces are joined without a gap, with the cache brought along and without it."""
    prompt = tuple(30 + 7 * i % 200 for i in range(70))
    for brings_cache in (True, False):
        await engine.llm.reset_prefix_cache()
        first = Request(f"first {brings_cache}", "x", prompt, 200)
        turn = asyncio.create_task(engine.generate(first))
        await under_way(engine, 30)
        await engine.interrupt([first.id])
        piece = await turn
        assert piece.finish_reason == "abort" and piece.routing is not None and piece.cache
        await engine.llm.reset_prefix_cache()
        rest = replace(
            first,
            id=f"rest {brings_cache}",
            prompt_ids=prompt + piece.token_ids,
            max_tokens=40,
            cache=piece.cache if brings_cache else "",
            num_routed=len(piece.routing),
        )
        assert rest.num_routed == len(rest.prompt_ids) - 1
        last = await engine.generate(rest)
        assert (last.cached_tokens == rest.num_routed) == brings_cache
        whole = train_sample(trajectory("x", turns=[as_turn(prompt, joined([piece, last]))]), 0.0)
        expected = reference.choices(whole.token_ids)[:-1]
        assert agreement(captured(whole), expected) >= 1 - 10 * TIES
        if brings_cache:
            await _shares_what_was_loaded(engine, rest, reference)
        Path(piece.cache).unlink(missing_ok=True)


async def _shares_what_was_loaded(
    engine: VllmEngine, loaded: Request, reference: Reference
) -> None:
    """Of tokens whose keys and values came from elsewhere a later request says that it does not know."""
    other = Request("shares", "y", loaded.prompt_ids, 8)
    completion = await engine.generate(other)
    assert completion.routing is not None
    unknown = (completion.routing == UNKNOWN).all((1, 2))
    assert (unknown == (np.arange(len(unknown)) < completion.cached_tokens)).all()
    expected = reference.choices(other.prompt_ids + completion.token_ids)[:-1]
    known = agreement(completion.routing[~unknown], expected[~unknown])
    assert known >= 1 - 10 * TIES


async def _across_an_update(engine: VllmEngine, checkpoint: Path, folder: Path) -> None:
    """A token keeps the choices of the pass that gave the next token's log-prob: of that token's version."""
    old, new = Reference(checkpoint), Reference(checkpoint).disturbed(folder)
    prompt = tuple(40 + 11 * i % 200 for i in range(50))
    requests = [Request(f"crosses {i}", "z", prompt, 150) for i in range(8)]
    running = [asyncio.create_task(engine.generate(request)) for request in requests]
    await under_way(engine, 30)
    await engine.load(str(folder / "model.safetensors"), 1)
    crossed = 0
    for completion in await asyncio.gather(*running):
        crossed += len(completion.versions) == 2
        by_old = sum(span.end - span.start for span in completion.versions if span.version == 0)
        # The first token that the new version computed: the one before the first that it wrote.
        change = len(prompt) + by_old - 1 if by_old else 0
        ids = prompt + completion.token_ids
        before, after = old.choices(ids)[:-1], new.choices(ids)[:-1]
        assert agreement(before, after) < 0.9
        expected = np.concatenate([before[:change], after[change:]])
        assert completion.routing is not None
        assert agreement(completion.routing, expected) >= 1 - 10 * TIES
    assert crossed


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_in_bfloat16_the_choices_differ_now_and_then(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    asyncio.run(_bfloat16(checkpoints[family], tmp_path))


async def _bfloat16(checkpoint: Path, folder: Path) -> None:
    engine = engine_on(checkpoint, "bfloat16", folder)
    try:
        await engine.llm.update_weight_version("0")
        shared = await agreements(engine, Reference(checkpoint))
    finally:
        engine.shutdown()
    print(checkpoint.name, "bfloat16", np.mean(shared))
    assert 0.8 <= np.mean(shared) < 1
