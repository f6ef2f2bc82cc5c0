"""32,000 episodes in progress at once on one machine, within 8 GB, every one of them accounted for.

    python benchmarks/episodes.py [--episodes N] [--json FILE]

The real run on a local Ray of its own: `Run` (admission, dispatcher, ledger, queue, run folder), four
controllers with the real renderer, two environment hosts with the environment `calculator`, the judge
`well_formed`. Four actors stand where vLLM engines stand: they hold every request until a gate opens,
then answer at once (a tool call, one in five of them refused; after it a plain answer). One actor stands
where the learner stands: it fetches its samples and steps.

The gate opens when no episode can get any further, so at that moment all of them wait for an engine's
first answer: *peak concurrent* counts them at the controllers, *in engines* at the engines. Then the run
trains until it has finished more trajectories than were in flight at the peak, and cancels the rest.

Memory is the proportional set size (PSS: private pages, and of shared ones the share) of this process and
everything it started, Ray's own processes included, sampled every second. Trajectories are short (the
table says how many tokens); their tokens are a part of it.

Target: peak memory at most 8 GB (2**30 bytes each) in total, and a ledger without a remainder. Exits with 1
where one is missed.
"""

import argparse
import asyncio
import io
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from rich.console import Console

from envs.env import call, say
from envs.message import Message, ToolCall
from rl.cluster import Cluster
from rl.cold_start import first_checkpoint
from rl.config import RunConfig
from rl.progress import Progress
from rl.run import Run
from rl.run_folder import RunFolder
from rl.wandb_sink import WandbSink
from rollout.engine import Completion, Request, VersionSpan
from rollout.renderer import Renderer
from rollout.vllm_engine import LoadTimes

TARGET_GB = 8.0
GROUP_SIZE, ENGINES, CONTROLLERS, HOSTS = 8, 4, 4, 2
# Batches that fit into what is in flight; rollouts may run ahead by so many and one more.
BATCHES = 8
HOURS = 4 * 3600.0
POLL_SECONDS = 2.0


def settings(episodes: int, folder: str) -> RunConfig:
    """A run of as many groups in flight as make `episodes`; no deadline is to pass on a small machine."""
    groups = episodes // GROUP_SIZE
    deadlines = {f"{act}_seconds": HOURS for act in ("reset", "tool", "score", "close")}
    env = {"id": "calculator", "judges": ["well_formed"], "deadlines": deadlines}
    return RunConfig.model_validate(
        {
            "name": "episodes",
            "runs_dir": folder,
            "steps": BATCHES,
            "mode": "in_flight",
            "max_staleness": BATCHES,
            "model": {"init": {}},
            "env": [env],
            "batch": {"groups": groups // BATCHES, "group_size": GROUP_SIZE},
            "episode": {"max_seconds": HOURS},
            "engine": {"count": ENGINES, "cpus": 0, "request_seconds": HOURS},
            "learner": {"cpus": 0},
            "rollout": {
                "max_in_flight_groups": groups,
                "controllers": CONTROLLERS,
                "hosts": HOSTS,
            },
            "timeouts": {"stall_seconds": HOURS},
            "eval": {"before": False, "after": False},
            "wandb": {"enabled": False},
        }
    )


class StandInEngine:
    """Stands where an engine stands: holds every request until the gate opens, then answers at once."""

    def __init__(self, name: str, calls: Sequence[Sequence[int]], answer: Sequence[int]) -> None:
        """`calls`: first turns to draw from, as ids; `answer`: every later turn."""
        self.name = name
        self.calls = [tuple(ids) for ids in calls]
        self.answer = tuple(answer)
        self.rng = random.Random(name)
        self.version = 0
        self.waiting = 0
        self.gate = asyncio.Event()

    async def start(self) -> None:
        """There is nothing to start."""

    async def generate(self, request: Request) -> Completion:
        """One turn."""
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        first = request.id.endswith("/0")
        ids = self.rng.choice(self.calls) if first else self.answer
        logprobs = tuple(-self.rng.random() for _ in ids)
        spans = (VersionSpan(self.version, 0, len(ids)),)
        return Completion(ids, logprobs, spans, "stop", self.name)

    async def load(self, path: str, version: int) -> LoadTimes:
        """Change version."""
        self.version = version
        return LoadTimes(pause_ms=0.0, transfer_ms=0.0)

    async def held(self) -> int:
        """Requests that wait."""
        return self.waiting

    async def open(self) -> None:
        """Answer from now on."""
        self.gate.set()

    async def shutdown(self) -> None:
        """There is nothing to end."""


class StandInLearner:
    """Stands where the learner stands: fetches its samples, as the learner does, and steps."""

    def ready(self) -> int:
        """There is nothing to load."""
        return 0

    def step(self, groups: Sequence[Any]) -> dict[str, float]:
        """Count the tokens."""
        tokens = sum(len(s.token_ids) for group in ray.get(list(groups)) for s in group)
        return {
            "learner/tokens": float(tokens),
            "parity/tokens": 0.0,
            "parity/mean_abs_dlogp": 0.0,
        }

    def publish(self, path: str) -> int:
        """There are no weights."""
        return 0

    def save(self, folder: str) -> None:
        """There is no policy."""


class StandInCluster(Cluster):
    """The cluster with stand-ins for what needs a policy."""

    def _place_engines(self, checkpoint: str) -> None:
        calls, answer = turns(Renderer(checkpoint, self.config.episode.tool_format))
        for index in range(ENGINES):
            name = f"engine-{index}"
            self._engines[name] = self._place(StandInEngine, name, (name, calls, answer))

    def _place_learner(self, checkpoint: str) -> Any:
        return self._place(StandInLearner, "learner", (), max_concurrency=1)


def turns(renderer: Renderer) -> tuple[list[list[int]], list[int]]:
    """What the engines write: five first turns with a tool call, one of which is refused; an answer."""

    def ids(said: Message) -> list[int]:
        tokens, learn = renderer.demonstration([Message("user", "?")], (), [said])
        return [id for id, own in zip(tokens, learn, strict=True) if own]

    refused = Message("assistant", tool_calls=(ToolCall("add", {"a": 1}),))
    return [*[ids(call("add", a=n, b=2)) for n in range(4)], ids(refused)], ids(say("42"))


def gigabytes() -> float:
    """Memory of this process and all below it: proportional set size, in units of 2**30 bytes."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (OSError, psutil.NoSuchProcess):
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:")
    return total / 2**20


class Memory:
    """Samples memory every second, in a thread of its own, and keeps the peak."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.over.wait(1.0):
            self.peak = max(self.peak, gigabytes())

    def close(self) -> float:
        """Stop; the peak."""
        self.over.set()
        self.thread.join()
        return self.peak


@dataclass
class Result:
    """What was measured. idle_gb: with all actors started. fill_seconds: until all were in progress.

    driver_cpu_ms: CPU time of the run's own process per trajectory dispatched, Ray's part included.
    """

    episodes: int
    peak_concurrent: int = 0
    in_engines: int = 0
    idle_gb: float = 0.0
    peak_gb: float = 0.0
    fill_seconds: float = 0.0
    seconds: float = 0.0
    driver_cpu_ms: float = 0.0
    tokens_each: float = 0.0
    ledger: dict[str, int] = field(default_factory=dict)

    @property
    def remainder(self) -> int:
        """Dispatched, and neither at an end nor in progress."""
        return 2 * self.ledger["dispatched"] - sum(self.ledger.values())

    @property
    def ended(self) -> int:
        """Trajectories that came to an end of their own."""
        return self.ledger["dispatched"] - self.ledger.get("cancelled", 0)


async def fill(run: Run, result: Result, start: float) -> None:
    """Open the gate when all episodes wait for an engine; write down how many there were."""
    engines = run.actors.engines.values()
    while result.in_engines < result.episodes:
        await asyncio.sleep(POLL_SECONDS)
        held = await asyncio.gather(*(engine.held.remote() for engine in engines))
        result.in_engines = sum(held)
        print(f"{time.monotonic() - start:6.0f} s: {result.in_engines:,} in engines", flush=True)
    result.peak_concurrent = len(await run.dispatcher.waiting())
    result.fill_seconds = time.monotonic() - start
    await asyncio.gather(*(engine.open.remote() for engine in engines))


async def play(config: RunConfig, folder: RunFolder, checkpoint: str, result: Result) -> None:
    """The run from its start to its end, over a cluster that is there."""
    cluster = StandInCluster(config, folder.path)
    try:
        cluster.connect()
        await cluster.start(checkpoint)
        result.idle_gb = gigabytes()
        progress = Progress(Console(file=io.StringIO()))
        run = Run(config, cluster, folder, progress, WandbSink(config, folder))
        memory, start, cpu = Memory(), time.monotonic(), time.process_time()
        filling = asyncio.create_task(fill(run, result, start))
        await run.main()
        await filling
        result.seconds = time.monotonic() - start
        result.peak_gb = memory.close()
        summary = run.summary()
        result.ledger = summary["ledger"]["all"]
        dispatched = result.ledger["dispatched"]
        result.driver_cpu_ms = 1e3 * (time.process_time() - cpu) / dispatched
        result.tokens_each = summary["tokens"] / result.ended
    finally:
        cluster.stop()


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=32_000, help="in progress at once")
    parser.add_argument("--json", type=Path, help="write what was measured to this file, too")
    asked = parser.parse_args()
    result = Result(asked.episodes)
    with tempfile.TemporaryDirectory() as temporary:
        config = settings(asked.episodes, temporary)
        checkpoint, _ = first_checkpoint(config, lambda *_: None)
        folder = RunFolder(config)
        asyncio.run(play(config, folder, checkpoint, result))
        folder.close()
    rows = {
        "episodes": f"{result.episodes:,}",
        "peak concurrent": f"{result.peak_concurrent:,} (in engines {result.in_engines:,})",
        "peak memory": f"{result.peak_gb:.2f} GB, {result.idle_gb:.2f} GB of it before the first episode",
        "seconds": f"{result.seconds:.0f}, {result.fill_seconds:.0f} of them until all were in progress",
        "episodes/s": f"{result.ended / result.seconds:.0f}",
        "run's CPU": f"{result.driver_cpu_ms:.2f} ms per trajectory",
        "tokens": f"{result.tokens_each:.0f} per trajectory",
        "ledger": "  ".join(f"{name} {n:,}" for name, n in result.ledger.items() if n),
        "remainder": str(result.remainder),
    }
    for name, value in rows.items():
        print(f"{name:<16} {value}")
    if asked.json:
        asked.json.write_text(json.dumps({**vars(result), "remainder": result.remainder}) + "\n")
    met = (
        result.peak_gb <= TARGET_GB
        and result.remainder == 0
        and result.peak_concurrent >= result.episodes <= result.ended
    )
    print(f"target: {result.episodes:,} within {TARGET_GB:g} GB: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
