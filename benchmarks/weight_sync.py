"""How long new weights stop two engines, against one memory copy of the same bytes.

    python benchmarks/weight_sync.py [--size tiny|medium|small ...] [--json]
    python benchmarks/weight_sync.py --tensors 18867 [--json]
    python benchmarks/weight_sync.py --change [--size ...] [--json]

With `--change` it measures how long 32 running requests stand still when the weights change, for each
`engine.update` (benchmarks/weight_change.py); it exits with 1 where a rolling change of `small` stops one for
more than 5 undisturbed gaps. With `--tensors` nothing is started: it counts the calls that stage a version
with so many names (benchmarks/staging.py), and exits with 1 where they are more than 200. Otherwise:

The real actors of a run on a local Ray: the learner and two vLLM engines with one thread each, bfloat16,
LongCat-Flash. Every engine writes 8 sequences without end, and the arrival of every token is noted. Then, for
each of 6 versions: the learner copies its weights and writes them beside, both engines stage the file while
they write on, and change to it. First the engines write for some seconds undisturbed.

*memcpy*: one warm copy of as many bytes as the file has, in one thread, nothing else at work. *pause*: from
the call that stops an engine to the answer that it goes on; *swap*, the part of it that changes weights.
*staging*: from the call to the answer, while the engine writes; *idle*, while it does not. These are medians
over versions and engines. *gap*: the longest time between two tokens of a sequence, undisturbed; while a
version is staged; and in the change, after which its prefix is computed again with the new weights, for the
caches are of the old ones (the last two are medians over versions of the longest).

Target for `small`: a pause of at most 10 memory copies, and no gap in a staging as long as an idle one takes.
Exits with 1 where one is missed.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from staging import MOST_CALLS, staging
from transformers import AutoConfig
from weight_change import Change
from weight_change import measure as measure_change

from rl.actors.actor_method import Handle, actor_method
from rl.actors.engine import EngineActor
from rl.cluster import Cluster
from rl.cold_start import corpus
from rl.config import RunConfig
from rl.fleet.file_transport import FileTransport
from rl.fleet.weight_sync import WeightSync
from rl.record.run_folder import RunFolder
from trainer.families.family import Preset
from trainer.policy import build_policy
from trainer.small.init_model import init_checkpoint
from trainer.weights import published_weights, read_checkpoint, write_checkpoint, write_weights

TARGET_COPIES, TARGET_GAPS = 10.0, 5.0
VERSIONS, SEQUENCES, PROMPT, LENGTH = 6, 8, 32, 512
UNDISTURBED_SECONDS, LIMIT_SECONDS = 4.0, 120.0
# Preset, and how many of its layers.
SIZES: dict[str, tuple[Preset, int]] = {
    "tiny": ("tiny", 2),
    "medium": ("small", 2),
    "small": ("small", 6),
}


@dataclass(frozen=True)
class Result:
    """One size. Times in ms."""

    parameters: int
    bytes: int
    memcpy_ms: float
    snapshot_ms: float
    publish_ms: float
    staging_ms: float
    idle_staging_ms: float
    pause_ms: float
    pause_max_ms: float
    swap_ms: float
    pause_over_memcpy: float
    gap_ms: float
    gap_staging_ms: float
    gap_change_ms: float


class WritingEngine(EngineActor):
    """An engine that writes sequences without end, and notes when each token came."""

    @actor_method
    async def begin(self) -> None:
        """Begin to write."""
        self.arrivals: list[list[float]] = []
        self.newest: dict[int, list[float]] = {}
        self.writing = [asyncio.create_task(self._write(n)) for n in range(SEQUENCES)]

    @actor_method
    async def end(self) -> None:
        """Write no more."""
        for task in self.writing:
            task.cancel()
        await asyncio.gather(*self.writing, return_exceptions=True)

    @actor_method
    async def written_on(self) -> None:
        """Returns once every sequence has a token that is newer than this call."""
        start = time.monotonic()
        while not all(times and times[-1] > start for times in self.newest.values()):
            await asyncio.sleep(0.01)

    @actor_method
    async def longest_gap(self, start: float, end: float) -> float:
        """The longest time (ms) without a token, of the sequences, that lies in part between two moments."""
        return 1e3 * max(
            after - before
            for times in self.arrivals
            for before, after in itertools.pairwise(times)
            if before <= end and after >= start
        )

    async def _write(self, number: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=LENGTH - PROMPT,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt: Any = {"prompt_token_ids": list(range(20, 20 + PROMPT))}
        for again in range(sys.maxsize):
            times = self.newest[number] = []
            self.arrivals.append(times)
            async for _ in self.engine.llm.generate(prompt, parameters, f"{number}-{again}"):
                times.append(time.monotonic())


class WritingCluster(Cluster):
    """The cluster of a run, its engines writing."""

    def _place(self, kind: type, name: str, *arguments: Any, **options: Any) -> Any:
        return super()._place(
            WritingEngine if kind is EngineActor else kind, name, *arguments, **options
        )


def settings(folder: str) -> RunConfig:
    """Two engines and a learner, one thread each."""
    return RunConfig.model_validate(
        {
            "name": "weight-sync",
            "runs_dir": folder,
            "model": {"init": {}},
            "env": [{"id": "calculator"}],
            "engine": {
                "count": 2,
                "cpus": 0,
                "threads": 1,
                "dtype": "bfloat16",
                "max_model_len": LENGTH,
                "max_num_seqs": SEQUENCES,
            },
            "learner": {"cpus": 0, "threads": 1},
            "rollout": {"controllers": 1, "hosts": 1},
            "wandb": {"enabled": False},
        }
    )


def make_checkpoint(config: RunConfig, size: str, folder: Path) -> int:
    """A policy of random weights. Returns its parameter count."""
    preset, layers = SIZES[size]
    texts = corpus(config)
    number = init_checkpoint(folder, family="longcat_flash", preset=preset, corpus=texts, seed=0)
    shape = AutoConfig.from_pretrained(folder)
    if shape.num_layers == layers:
        return number
    shape.num_layers = layers
    model = build_policy(shape, torch.float32)
    write_checkpoint(model, folder, torch.float32)
    return sum(p.numel() for p in model.parameters())


def memory_copy_ms(size: int) -> float:
    """A warm copy of so many bytes in one thread."""
    torch.set_num_threads(1)
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.ones_like(source)
    times: list[float] = []
    for _ in range(15):
        start = time.perf_counter()
        target.copy_(source)
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


async def measure(config: RunConfig, checkpoint: Path, folder: Path, parameters: int) -> Result:
    """One size: start the actors, write, and change weights."""
    cluster = WritingCluster(config, folder)
    try:
        cluster.connect()
        actors = await cluster.start(str(checkpoint))
        sync = WeightSync(actors, FileTransport(actors, cluster.weights), LIMIT_SECONDS)
        engines = cast(list[Handle[WritingEngine]], list(actors.engines.values()))
        idle, size = await idle_staging(sync)
        memcpy = memory_copy_ms(size)
        await asyncio.gather(*(e.begin.remote() for e in engines))
        await written_on(engines)
        start = time.monotonic()
        await asyncio.sleep(UNDISTURBED_SECONDS)
        gap = await longest_gap(engines, start, time.monotonic())
        snapshots, publishes, stagings, pauses, swaps = [], [], [], [], []
        gaps, changes = [], []
        for version in range(1, VERSIONS + 1):
            snapshots.append(await sync.snapshot(version))
            publishes.append(1e3 * (await sync.publish(version)).seconds)
            everyone = dict.fromkeys(actors.engines, version)
            await written_on(engines)
            start = time.monotonic()
            stagings += await sync.stage(everyone)
            end = time.monotonic()
            await written_on(engines)
            gaps.append(await longest_gap(engines, start, end))
            start = time.monotonic()
            times = await sync.load(everyone)
            end = time.monotonic()
            await written_on(engines)
            changes.append(await longest_gap(engines, start, end))
            pauses += [t.pause_ms for t in times.values()]
            swaps += [t.swap_ms for t in times.values()]
            sync.forget({version})
        await asyncio.gather(*(e.end.remote() for e in engines))
    finally:
        cluster.stop()
    return Result(
        parameters=parameters,
        bytes=size,
        memcpy_ms=memcpy,
        snapshot_ms=median(snapshots),
        publish_ms=median(publishes),
        staging_ms=median(stagings),
        idle_staging_ms=idle,
        pause_ms=median(pauses),
        pause_max_ms=max(pauses),
        swap_ms=median(swaps),
        pause_over_memcpy=median(pauses) / memcpy,
        gap_ms=gap,
        gap_staging_ms=median(gaps),
        gap_change_ms=median(changes),
    )


async def idle_staging(sync: WeightSync) -> tuple[float, int]:
    """How long a staging takes where nothing is written (ms), once the second model is there; a version's
    bytes."""
    times: tuple[float, ...] = ()
    size = 0
    for version in (VERSIONS + 2, VERSIONS + 1):
        await sync.snapshot(version)
        size = (await sync.publish(version)).bytes
        times = await sync.stage(dict.fromkeys(sync.actors.engines, version))
    return median(times), size


async def written_on(engines: Sequence[Handle[WritingEngine]]) -> None:
    """Until every sequence goes on: after a change of weights its prefix is computed again first."""
    await asyncio.gather(*(e.written_on.remote() for e in engines))


async def longest_gap(engines: Sequence[Handle[WritingEngine]], start: float, end: float) -> float:
    """Over all engines (ms)."""
    return max(await asyncio.gather(*(e.longest_gap.remote(start, end) for e in engines)))


def show(results: Mapping[str, Result | Change]) -> None:
    """The table."""
    table = Table("", *results)
    for name in next(iter(results.values())).__dataclass_fields__:
        values = [getattr(result, name) for result in results.values()]
        table.add_row(name, *(f"{v:,}" if isinstance(v, int) else f"{v:.1f}" for v in values))
    Console().print(table)


def count_calls(tensors: int, *, as_json: bool) -> int:
    """Print how many calls stage so many names; 1 where they are too many."""
    counted = staging(tensors)
    if as_json:
        print(json.dumps(asdict(counted)))
    else:
        table = Table("", "staging")
        for name, value in asdict(counted).items():
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.2f}")
        Console().print(table)
    return 0 if counted.calls + counted.conversions <= MOST_CALLS else 1


def change(sizes: Sequence[str], *, as_json: bool) -> int:
    """Print how long requests stand still in a change; 1 where that is too long."""
    results: dict[str, dict[str, Change]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            policy, weights = Path(temporary, "policy"), Path(temporary, "weights.safetensors")
            make_checkpoint(settings(temporary), size, policy)
            model = build_policy(AutoConfig.from_pretrained(policy), torch.float32)
            read_checkpoint(model, policy)
            write_weights(dict(published_weights(model, torch.bfloat16)), weights)
            results[size] = asyncio.run(measure_change(policy, weights))
    if as_json:
        print(json.dumps({s: {k: asdict(c) for k, c in r.items()} for s, r in results.items()}))
    for size, result in results.items() if not as_json else ():
        Console().print(f"[bold]{size}[/bold]")
        show(result)
    small = results.get("small")
    return 0 if small is None or small["rolling"].ratio <= TARGET_GAPS else 1


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=tuple(SIZES), nargs="+", default=list(SIZES))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tensors", type=int, help="count the calls that stage so many names")
    parser.add_argument("--change", action="store_true", help="how long requests stand still")
    asked = parser.parse_args()
    if asked.tensors is not None:
        return count_calls(asked.tensors, as_json=asked.json)
    # The engines' and the learner's threads are not to spin while they wait for a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if asked.change:
        return change(asked.size, as_json=asked.json)
    results: dict[str, Result] = {}
    for size in asked.size:
        with tempfile.TemporaryDirectory() as temporary:
            config, folder = settings(temporary), Path(temporary)
            number = make_checkpoint(config, size, folder / "policy")
            with closing(RunFolder(config)) as run:
                results[size] = asyncio.run(measure(config, folder / "policy", run.path, number))
    if asked.json:
        print(json.dumps({size: asdict(result) for size, result in results.items()}))
    else:
        show(results)
    small = results.get("small")
    if small is None:
        return 0
    met = small.pause_over_memcpy <= TARGET_COPIES and small.gap_staging_ms < small.idle_staging_ms
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
