"""Measures what `engine.compile` gives and costs: tokens/s of one engine on a CPU, eager and compiled.

    python benchmarks/engine.py [--dtype bfloat16] [--json]

Of each family a `tiny` policy with random weights. A compiled engine starts twice, with nothing kept and with
what the first start kept. Then an eager and a compiled engine, one thread each, take turns: 8, 64 and 128
requests of 64 tokens after 16 to 23 prompt tokens each, TURNS times; medians.

Exits with 1 where a compiled engine is not faster at each number of requests.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from rich.console import Console
from rich.table import Table

from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Request
from rollout.vllm_engine import VllmEngine
from trainer.small.init_model import init_checkpoint

FAMILIES = ("longcat_flash", "qwen3_moe")
REQUESTS, TOKENS, TURNS = (8, 64, 128), 64, 5


@dataclass(frozen=True)
class Row:
    """One family and one number of requests. first, again: seconds of a compiled engine's start."""

    family: str
    requests: int
    eager: float
    compiled: float
    start_eager: float
    start_first: float
    start_again: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Tokens per second of an engine, compiled or not.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows: list[Row] = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            # What this user keeps stays out of it.
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
            texts = [f"{n} {n * 7919 % 10007}" for n in range(4000)]
            init_checkpoint(
                Path(folder) / "policy", family=family, preset="tiny", corpus=texts, seed=0
            )
            rows += asyncio.run(measured(family, f"{folder}/policy", given.dtype))
    if given.json:
        print(json.dumps([asdict(one) for one in rows], indent=1))
    else:
        Console(width=100).print(table(rows))
    return 0 if all(one.compiled > one.eager for one in rows) else 1


async def measured(
    family: str, checkpoint: str, dtype: Literal["float32", "bfloat16"]
) -> list[Row]:
    """Starts, then turns of both engines."""
    first, start_first = await started(checkpoint, dtype, compiled=True)
    first.shutdown()
    compiled, start_again = await started(checkpoint, dtype, compiled=True)
    eager, start_eager = await started(checkpoint, dtype, compiled=False)
    rows: list[Row] = []
    try:
        for count in REQUESTS:
            speeds: dict[str, list[float]] = {"eager": [], "compiled": []}
            for turn in range(TURNS + 1):  # the first one warms up
                for name, engine in (("eager", eager), ("compiled", compiled)):
                    speed = await tokens_per_second(engine, count, turn)
                    speeds[name] += [speed] if turn else []
            rows.append(
                Row(
                    family,
                    count,
                    round(median(speeds["eager"])),
                    round(median(speeds["compiled"])),
                    start_eager,
                    start_first,
                    start_again,
                )
            )
    finally:
        eager.shutdown()
        compiled.shutdown()
    return rows


async def started(
    checkpoint: str, dtype: Literal["float32", "bfloat16"], *, compiled: bool
) -> tuple[VllmEngine, float]:
    """An engine that has answered its first request, and the seconds until then."""
    began = time.perf_counter()
    config = EngineConfig(dtype=dtype, max_model_len=256, compile=compiled)
    name = "compiled" if compiled else "eager"
    engine = VllmEngine(name, checkpoint, config, SamplingConfig(), (0,), seed=0)
    await engine.start()
    engine.eos_ids = ()  # every request writes all its tokens
    return engine, round(time.perf_counter() - began, 1)


async def tokens_per_second(engine: VllmEngine, count: int, turn: int) -> float:
    """So many requests at once, each with a prompt that no turn before had."""
    requests = [
        Request(f"{count}-{turn}-{n}", "", prompt(n, turn + count), TOKENS) for n in range(count)
    ]
    began = time.perf_counter()
    done = await asyncio.gather(*map(engine.generate, requests))
    return sum(len(one.token_ids) for one in done) / (time.perf_counter() - began)


def prompt(number: int, salt: int) -> tuple[int, ...]:
    return tuple(20 + (5 * i + 3 * number + 11 * salt) % 200 for i in range(16 + number % 8))


def table(rows: list[Row]) -> Table:
    found = Table("policy", "requests", "eager", "compiled", "times", "start: eager / first / kept")
    for r in rows:
        found.add_row(
            r.family,
            str(r.requests),
            f"{r.eager:,.0f}",
            f"{r.compiled:,.0f}",
            f"{r.compiled / r.eager:.2f}",
            f"{r.start_eager:.0f} / {r.start_first:.0f} / {r.start_again:.0f} s",
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
