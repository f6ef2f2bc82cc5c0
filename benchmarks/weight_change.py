"""How long requests stand still when the weights of their engine change, for each `engine.update`.

One engine with one thread, no Ray. 32 requests with prompts of their own are at 200 tokens each when the
staged weights are changed to; the arrival of every token is noted. The longest time between two tokens of a
request in the change, until every request is on the new weights, is set against the longest undisturbed one
of the same requests, just before.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast, get_args

from rollout.config import EngineConfig, SamplingConfig
from rollout.vllm_engine import VllmEngine

Update = Literal["at_once", "rolling", "keep_cache"]
REQUESTS, PROMPT, TOKENS, LENGTH, CHANGES = 32, 150, 200, 1024, 3
# Tokens that every request writes before the undisturbed gaps are looked at, and after the change.
BEGIN, AFTER = 10, 10


@dataclass(frozen=True)
class Change:
    """Changes of one kind; medians over them. Times in ms, but for `seconds`.

    gap: the longest in a change; undisturbed: the longest before it; ratio: of the two, in each change.
    seconds: from the change until every request is on the new weights. tokens: written in that time.
    """

    step_ms: float
    undisturbed_ms: float
    gap_ms: float
    ratio: float
    ratio_max: float
    pause_ms: float
    seconds: float
    tokens: float


@dataclass(frozen=True)
class _One:
    step_ms: float
    undisturbed_ms: float
    gap_ms: float
    pause_ms: float
    seconds: float
    tokens: float


async def measure(
    checkpoint: Path, weights: Path, kinds: Sequence[Update] = get_args(Update)
) -> dict[str, Change]:
    """Each kind of update on one engine, which is started here. weights: what it changes to, each time."""
    config = EngineConfig(
        dtype="bfloat16", max_model_len=LENGTH, max_num_seqs=REQUESTS, threads=1, move_cache="none"
    )
    engine = VllmEngine("engine-0", str(checkpoint), config, SamplingConfig(), (0,), seed=0)
    results: dict[str, Change] = {}
    version = itertools.count(1)
    try:
        await engine.start()
        for kind in kinds:
            engine.config = config.model_copy(update={"update": kind})
            ones = [await _change(engine, str(weights), next(version)) for _ in range(CHANGES)]
            results[kind] = _summary(ones)
    finally:
        engine.shutdown()
    return results


def _summary(ones: Sequence[_One]) -> Change:
    ratios = [one.gap_ms / one.undisturbed_ms for one in ones]
    medians = {name: median(getattr(one, name) for one in ones) for name in vars(ones[0])}
    return Change(**medians, ratio=median(ratios), ratio_max=max(ratios))


async def _change(engine: VllmEngine, path: str, version: int) -> _One:
    arrivals: list[list[float]] = [[] for _ in range(REQUESTS)]
    # Staged before anything runs: what staging costs is another question.
    await engine.stage(path, version)
    rng = random.Random(version)
    tasks = [
        asyncio.create_task(
            _write(engine, f"{version}-{n}", rng.choices(range(20, 300), k=PROMPT), one)
        )
        for n, one in enumerate(arrivals)
    ]
    await _have(arrivals, BEGIN)
    calm = time.monotonic()
    await _have(arrivals, TOKENS - PROMPT)
    start = time.monotonic()
    times = await engine.load(path, version)
    await engine.settled()
    end = time.monotonic()
    await _have(arrivals, max(map(len, arrivals)) + AFTER)
    await engine.abort([f"{version}-{n}" for n in range(REQUESTS)])
    await asyncio.gather(*tasks)
    steps = [
        b - a for one in arrivals for a, b in itertools.pairwise(one) if calm <= a and b <= start
    ]
    return _One(
        step_ms=1e3 * median(steps),
        undisturbed_ms=_longest(arrivals, calm, start),
        gap_ms=_longest(arrivals, start, end),
        pause_ms=times.pause_ms,
        seconds=end - start,
        tokens=sum(start <= t <= end for one in arrivals for t in one),
    )


def _longest(arrivals: list[list[float]], start: float, end: float) -> float:
    """The longest gap (ms) that lies in part between two moments."""
    return 1e3 * max(
        b - a for one in arrivals for a, b in itertools.pairwise(one) if a <= end and b >= start
    )


async def _have(arrivals: list[list[float]], tokens: int) -> None:
    while min(map(len, arrivals)) < tokens:
        await asyncio.sleep(0.002)


async def _write(engine: VllmEngine, id: str, prompt: list[int], times: list[float]) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    parameters = SamplingParams(
        max_tokens=LENGTH - PROMPT,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    async for output in engine.llm.generate(
        cast(Any, {"prompt_token_ids": prompt}), parameters, id
    ):
        times += [time.monotonic()] * len(output.outputs[0].token_ids)
