"""What routing replay changes: log-probs of a bfloat16 engine and of the learner, with and without it.

    python benchmarks/replay.py [--json]

One vLLM engine in bfloat16 writes 64 completions of 48 tokens, and notes its expert choices; the learner
scores the same tokens in bfloat16 and in float32, once with its own routers' choices and once with the
engine's. Policies are `small` ones with random weights, every matrix times `scale`: with small weights
routers hardly tell experts apart, and all differences are small. |d| is the difference of a token's log-prob
between engine and learner; agreement, the share of tokens and layers whose set of experts is the same.

Exits with 1 where agreement with replay is not whole, or the mean |d| of bfloat16 does not fall by it.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Request
from rollout.vllm_engine import VllmEngine
from trainer.config import LearnerConfig, RouterConfig
from trainer.learner import Learner
from trainer.policy import load_policy
from trainer.sample import TrainSample
from trainer.small.init_model import init_checkpoint
from trainer.weights import write_checkpoint

Dtype = Literal["bfloat16", "float32"]
COMPLETIONS, LENGTH, PROMPT = 64, 48, (16, 48)
POLICIES: tuple[tuple[str, float], ...] = (
    ("longcat_flash", 1.5),
    ("longcat_flash", 2.5),
    ("qwen3_moe", 1.5),
    ("qwen3_moe", 2.5),
)


@dataclass(frozen=True)
class Row:
    """One policy, one learner."""

    family: str
    scale: float
    learner: Dtype
    replay: bool
    mean: float
    p99: float
    largest: float
    agreement: float


def main() -> int:
    parser = argparse.ArgumentParser(description="What routing replay changes.")
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    rows: list[Row] = []
    for family, scale in POLICIES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = policy(Path(folder) / "policy", family, scale)
            samples = asyncio.run(written(checkpoint, Path(folder)))
            for dtype in ("bfloat16", "float32"):
                rows += [row(checkpoint, samples, family, scale, dtype, r) for r in (False, True)]
    if as_json:
        print(json.dumps([asdict(one) for one in rows], indent=1))
    else:
        Console(width=100).print(table(rows))
    return 0 if met(rows) else 1


def policy(folder: Path, family: str, scale: float) -> Path:
    """A `small` policy with random weights, `scale` times as large as usual."""
    rng = random.Random(0)
    texts = [" ".join(f"{rng.randrange(10**6)}" for _ in range(30)) for _ in range(200)]
    init_checkpoint(folder, family=family, preset="small", corpus=texts, seed=0)
    model = load_policy(folder, torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= scale
    write_checkpoint(model, folder, torch.float32)
    return folder


async def written(checkpoint: Path, caches: Path) -> list[TrainSample]:
    """What the engine writes after random prompts, with its log-probs and its expert choices."""
    config = EngineConfig(
        dtype="bfloat16", max_model_len=128, max_num_seqs=COMPLETIONS, capture_routing=True
    )
    engine = VllmEngine("a", str(checkpoint), config, SamplingConfig(), (0,), 0, str(caches))
    await engine.start()
    try:
        return list(await asyncio.gather(*(completed(engine, i) for i in range(COMPLETIONS))))
    finally:
        engine.shutdown()


async def completed(engine: VllmEngine, index: int) -> TrainSample:
    rng = random.Random(index)
    prompt = tuple(rng.randrange(20, 250) for _ in range(rng.randint(*PROMPT)))
    done = await engine.generate(Request(f"{index}", str(index), prompt, LENGTH))
    count = len(done.token_ids)
    zeros = (0.0,) * len(prompt)
    assert done.routing is not None, "the engine captures"
    last = np.full(
        (1, *done.routing.shape[1:]), np.iinfo(done.routing.dtype).max, done.routing.dtype
    )
    return TrainSample(
        id=str(index),
        env="random",
        token_ids=prompt + done.token_ids,
        loss_mask=(False,) * len(prompt) + (True,) * count,
        rollout_logprobs=zeros + done.logprobs,
        advantages=(0.0,) * (len(prompt) + count),
        versions=(0,) * (len(prompt) + count),
        routing=np.concatenate((done.routing, last)),
    )


def row(
    checkpoint: Path,
    samples: list[TrainSample],
    family: str,
    scale: float,
    dtype: Dtype,
    replay: bool,
) -> Row:
    """The learner's log-probs of these samples against the engine's."""
    config = LearnerConfig(dtype=dtype, router=RouterConfig(replay=replay))
    learner = Learner(checkpoint, config, temperature=1.0, keep_versions=0)
    scored = learner.logprobs(samples)
    gaps = [
        abs(ours - theirs)
        for sample, values in zip(samples, scored, strict=True)
        for ours, theirs in zip(values, sample.rollout_logprobs[-len(values) :], strict=True)
    ]
    metrics = learner.step(samples).metrics
    return Row(
        family=family,
        scale=scale,
        learner=dtype,
        replay=replay,
        mean=float(np.mean(gaps)),
        p99=float(np.quantile(gaps, 0.99)),
        largest=max(gaps),
        agreement=metrics["router/agreement"],
    )


def met(rows: list[Row]) -> bool:
    """Whether replay makes choices equal, and bfloat16 learners nearer, in every policy."""
    off = {(r.family, r.scale): r.mean for r in rows if r.learner == "bfloat16" and not r.replay}
    on = [r for r in rows if r.replay]
    return all(r.agreement == 1 for r in on) and all(
        r.mean < off[r.family, r.scale] for r in on if r.learner == "bfloat16"
    )


def table(rows: list[Row]) -> Table:
    found = Table("policy", "scale", "learner", "replay", "mean |d|", "p99", "largest", "agreement")
    for r in rows:
        found.add_row(
            r.family,
            f"{r.scale:g}",
            r.learner,
            "on" if r.replay else "off",
            f"{r.mean:.2e}",
            f"{r.p99:.2e}",
            f"{r.largest:.2f}",
            f"{r.agreement:.1%}",
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
