"""32,000 episodes in progress at once on one machine, within 8 GB, every one of them accounted for.

    python benchmarks/episodes.py [--episodes N] [--mode in_flight|dora] [--pack DIR] [--json FILE]

The real run on a local Ray of its own: `Run` (admission, dispatcher, ledger, queue, run folder), four
controllers with the real renderer, two environment hosts with the environment `calculator`, the judge
`well_formed`. Four actors stand where vLLM engines stand: they hold every first turn, and let them go, the
oldest first, with a tool call (one in five is refused); a later turn they answer at once. One actor stands
where the learner stands: it fetches its samples and steps.

Nothing is let go until no episode can get any further. At that moment all of them wait for their first
turn: *peak concurrent* counts them at the controllers, *in engines* at the engines. Then the engines let 512
go whenever every controller has answered a call, which is as fast as the machine can; each group that ends
makes room for another, so the number in progress stays. The run trains on as many trajectories as were
in progress, and cancels the rest.

--pack: worlds of a pack (`dorado env generate`) instead, each with a database of its own; the first turns are
those of experts on some of its tasks, which most worlds refuse.

Memory is the proportional set size (PSS: private pages, and of shared ones the share) of this process and
everything it started, Ray's own processes included, sampled every second. Trajectories are short (the
table says how many tokens); their tokens are a part of it.

Target: peak memory at most 8 GB (2**30 bytes each) in total, 10 GB with worlds of a pack, and a ledger
without a remainder. Exits with 1 where one is missed.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import ray
from ray import ObjectRef
from rich.console import Console
from typing_extensions import override

from envs.env import call, say
from envs.message import Message, ToolCall
from envs.session import demonstrate
from rl.actors.actor_method import Handle, actor_method, beside
from rl.actors.engine import EngineActor
from rl.actors.heartbeat import Heartbeat, own_heartbeat
from rl.actors.learner import LearnerActor
from rl.cluster import Cluster
from rl.cold_start import first_checkpoint
from rl.config import RunConfig
from rl.env_table import EnvTable
from rl.loop.run import Run
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from rl.trackers.trackers import Trackers
from rollout.engine import Completion, Request, VersionSpan
from rollout.renderer import Renderer
from rollout.vllm_engine import LoadTimes
from trainer.sample import TrainSample
from trainer.step_result import StepResult

TARGET_GB, PACK_GB = 8.0, 10.0
# Tasks of a pack whose experts' first turns are written.
EXPERTS = 16
GROUP_SIZE, ENGINES, CONTROLLERS, HOSTS = 8, 4, 4, 2
# Batches that fit into what is in flight; rollouts may run ahead by so many and one more.
BATCHES = 8
HOURS = 4 * 3600.0
POLL_SECONDS = 2.0
# First turns that all engines together answer at a time.
AT_ONCE = 512


def settings(episodes: int, mode: str, folder: str, pack: Path | None) -> RunConfig:
    """A run of as many groups in flight as make `episodes`; no deadline is to pass on a small machine."""
    groups = episodes // GROUP_SIZE
    deadlines = {f"{act}_seconds": HOURS for act in ("reset", "tool", "score", "close")}
    env = {"id": "calculator", "judges": ["well_formed"], "deadlines": deadlines}
    most = 256
    if pack is not None:  # the tools of a world are a prompt of 1,500 tokens
        most = 4096
        env |= {"id": "generated", "judges": [], "config": {"pack": str(pack.absolute())}}
    return RunConfig.model_validate(
        {
            "name": "episodes",
            "runs_dir": folder,
            "steps": BATCHES,
            "mode": mode,
            "max_staleness": BATCHES,
            "live_versions": BATCHES,
            "model": {"init": {}},
            "env": [env],
            "batch": {
                "groups": groups // BATCHES,
                "group_size": GROUP_SIZE,
                # Nobody solves a world here.
                "filter_zero_variance": pack is None,
            },
            "episode": {"max_seconds": HOURS, "max_tokens": most},
            "engine": {
                "count": ENGINES,
                "cpus": 0,
                "request_seconds": HOURS,
                "max_model_len": 4096,
            },
            "learner": {"cpus": 0},
            "rollout": {
                "max_in_flight_groups": groups,
                "over_dispatch": BATCHES + 1,
                "controllers": CONTROLLERS,
                "hosts": HOSTS,
            },
            "timeouts": {"stall_seconds": HOURS},
            "eval": {"before": False, "after": False},
            "wandb": {"enabled": False},
        }
    )


class StandInEngine(EngineActor):
    """Stands where an engine stands: holds first turns until they are let go, answers later ones at once."""

    def __init__(self, name: str, calls: Sequence[Sequence[int]], answer: Sequence[int]) -> None:
        """`calls`: first turns to draw from, as ids; `answer`: every later turn."""
        self.name = name
        self.calls = [tuple(ids) for ids in calls]
        self.answer = tuple(answer)
        self.rng = random.Random(name)
        self.version = 0
        self.held: dict[str, asyncio.Future[tuple[int, ...]]] = {}
        self._listen("127.0.0.1")

    @actor_method
    async def start(self) -> None:
        """There is nothing to start."""

    @actor_method
    async def generate(self, request: Request) -> Completion:
        """One turn."""
        ids = self.answer
        if request.id.partition("/")[2][0] == "0":
            self.held[request.id] = asyncio.get_running_loop().create_future()
            ids = await self.held[request.id]
        if not ids:
            return Completion((), (), (), "abort", self.name)
        logprobs = tuple(-self.rng.random() for _ in ids)
        spans = (VersionSpan(self.version, 0, len(ids)),)
        return Completion(ids, logprobs, spans, "stop", self.name)

    @actor_method
    async def interrupt(self, ids: Sequence[str]) -> None:
        """End these requests with what they have written, which is nothing."""
        for id in ids:
            if (one := self.held.pop(id, None)) is not None:
                one.set_result(())

    @actor_method
    async def abort(self, ids: Sequence[str]) -> None:
        """End requests that nobody waits for."""
        await self.interrupt(ids)

    @actor_method
    async def stage(self, path: str, version: int) -> float:
        """There is nothing to make ready."""
        return 0.0

    @actor_method
    async def load(self, path: str, version: int) -> LoadTimes:
        """Change version."""
        self.version = version
        return LoadTimes(pause_ms=0.0, swap_ms=0.0, staging_ms=0.0)

    @actor_method
    async def let_go(self, count: int) -> int:
        """Answer so many of the requests that wait. Returns how many are left."""
        for id in list(itertools.islice(self.held, count)):
            self.held.pop(id).set_result(self.rng.choice(self.calls))
        return len(self.held)

    @actor_method
    async def heartbeat(self) -> Heartbeat:
        """Answer at once."""
        return own_heartbeat()

    @actor_method
    async def shutdown(self) -> None:
        """There is nothing to end."""


class StandInLearner(LearnerActor):
    """Stands where the learner stands: fetches its samples, as the learner does, and steps."""

    def __init__(self) -> None:
        pass

    @actor_method
    def ready(self, meeting: str = "") -> int:
        """There is nothing to load."""
        return 0

    @actor_method
    def lost(self, groups: Sequence[ObjectRef[list[TrainSample]]]) -> list[int]:
        """None: on one node no group is ever lost."""
        return []

    @actor_method
    def step(self, groups: Sequence[ObjectRef[list[TrainSample]]]) -> StepResult:
        """Count the tokens."""
        tokens = sum(len(s.token_ids) for group in ray.get(list(groups)) for s in group)
        return StepResult(
            {"learner/tokens": float(tokens), "parity/tokens": 0.0, "parity/mean_abs_dlogp": 0.0}
        )

    @beside("heartbeat")
    def heartbeat(self) -> Heartbeat:
        """Answer at once."""
        return own_heartbeat()

    @actor_method
    def snapshot(self, version: int) -> float:
        """There are no weights."""
        return 0.0

    @beside("publish")
    def publish(self, version: int, path: str) -> int:
        """There are no weights."""
        return 0

    @beside("publish")
    def record(self) -> list[tuple[str, int]]:
        """Nothing was computed."""
        return []

    @actor_method
    def save(self, folder: str, position: str) -> None:
        """There is no policy."""

    @actor_method
    def saved(self) -> None:
        """There is nothing to wait for."""


class StandInCluster(Cluster):
    """The cluster with stand-ins for what needs a policy."""

    engine_kind: type[StandInEngine] = StandInEngine
    first: Sequence[Message]

    @override
    def _place_engine(self, name: str) -> Handle[EngineActor]:
        checkpoint, _ = self._policy
        calls, answer = turns(Renderer(checkpoint, self.config.model.format), self.first)
        return self._place(self.engine_kind, name, (name, calls, answer))

    @override
    def _place_learner(self, checkpoint: str) -> dict[str, Handle[LearnerActor]]:
        groups = {"publish": 1, "heartbeat": 1}
        learner = self._place(StandInLearner, "learner", (), beside=groups, max_concurrency=1)
        return {"learner": learner}


def turns(renderer: Renderer, first: Iterable[Message]) -> tuple[list[list[int]], list[int]]:
    """Ids that the engines write: first turns, and an answer."""

    def ids(said: Message) -> list[int]:
        tokens, learn = renderer.demonstration([Message("user", "?")], (), [said])
        return [id for id, own in zip(tokens, learn, strict=True) if own]

    return [ids(message) for message in first], ids(say("42"))


async def first_turns(env: EnvTable) -> list[Message]:
    """Five first turns with a call of the calculator, one of which is refused; of worlds their experts'."""
    if env.id == "calculator":
        refused = Message("assistant", tool_calls=(ToolCall("add", {"a": 1}),))
        return [*(call("add", a=n, b=2) for n in range(4)), refused]
    tasks = itertools.islice(env.make().tasks("train", 0), EXPERTS)
    return [(await demonstrate(env.make(), task))[1][0] for task in tasks]


def gigabytes() -> float:
    """Memory of this process and all below it: proportional set size, in units of 2**30 bytes."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
        except (OSError, psutil.NoSuchProcess):
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:")
    return total / 2**20


def cpu_seconds() -> float:
    """CPU time that this process and all below it have taken so far."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


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
    """Figures of a measurement. idle_gb: with all actors started. fill_seconds: until all were in progress.

    cpu_ms: CPU time of all processes per trajectory dispatched; driver_cpu_ms: of the run's own process,
    Ray's part included.
    """

    episodes: int
    peak_concurrent: int = 0
    in_engines: int = 0
    idle_gb: float = 0.0
    peak_gb: float = 0.0
    fill_seconds: float = 0.0
    seconds: float = 0.0
    cpu_ms: float = 0.0
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


async def drive(run: Run, result: Result) -> None:
    """Let requests go once all episodes wait for an engine; write down how many there were."""
    start = time.monotonic()
    while result.in_engines < result.episodes:
        await asyncio.sleep(POLL_SECONDS)
        result.in_engines = await let_go(run, 0)
        print(f"{time.monotonic() - start:6.0f} s: {result.in_engines:,} in engines", flush=True)
    result.peak_concurrent = sum((await run.dispatcher.waiting(0)).counts.values())
    result.fill_seconds = time.monotonic() - start
    while True:
        await let_go(run, AT_ONCE // ENGINES)
        await asyncio.gather(*(c.ready.remote() for c in run.actors.controllers.values()))


async def let_go(run: Run, count: int) -> int:
    """Have every engine answer so many first turns. Returns how many wait in all."""
    engines = cast(list[Handle[StandInEngine]], list(run.actors.engines.values()))
    left = await asyncio.gather(*(e.let_go.remote(count) for e in engines))
    return sum(left)


async def play(config: RunConfig, folder: RunFolder, checkpoint: str, result: Result) -> None:
    """The run from its start to its end, over a cluster that is there."""
    cluster = StandInCluster(config, folder.path)
    try:
        cluster.first = await first_turns(config.env[0])
        cluster.connect()
        await cluster.start(checkpoint)
        result.idle_gb = gigabytes()
        progress = Progress(Console(highlight=False))
        run = Run(config, cluster, folder, progress, Trackers(folder))
        memory, start, cpu, own = Memory(), time.monotonic(), cpu_seconds(), time.process_time()
        driving = asyncio.create_task(drive(run, result))
        await run.main()
        driving.cancel()
        result.seconds = time.monotonic() - start
        result.peak_gb = memory.close()
        summary: Any = run.summary()
        result.ledger = summary["ledger"]["all"]
        dispatched = result.ledger["dispatched"]
        result.cpu_ms = 1e3 * (cpu_seconds() - cpu) / dispatched
        result.driver_cpu_ms = 1e3 * (time.process_time() - own) / dispatched
        result.tokens_each = summary["tokens"] / result.ended
    finally:
        cluster.stop()


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=32_000, help="in progress at once")
    parser.add_argument("--mode", choices=("in_flight", "dora"), default="in_flight")
    parser.add_argument("--pack", type=Path, help="a pack of worlds in place of the calculator")
    parser.add_argument("--json", type=Path, help="write what was measured to this file, too")
    asked = parser.parse_args()
    result = Result(asked.episodes)
    with tempfile.TemporaryDirectory() as temporary:
        config = settings(asked.episodes, asked.mode, temporary, asked.pack)
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
        "CPU": f"{result.cpu_ms:.2f} ms per trajectory, {result.driver_cpu_ms:.2f} of them the run's",
        "tokens": f"{result.tokens_each:.0f} per trajectory",
        "ledger": "  ".join(f"{name} {n:,}" for name, n in result.ledger.items() if n),
        "remainder": str(result.remainder),
    }
    for name, value in rows.items():
        print(f"{name:<16} {value}")
    if asked.json:
        asked.json.write_text(
            json.dumps({**vars(result), "remainder": result.remainder}) + "\n", encoding="utf-8"
        )
    target = TARGET_GB if asked.pack is None else PACK_GB
    met = (
        result.peak_gb <= target
        and result.remainder == 0
        and result.peak_concurrent >= result.episodes <= result.ended
    )
    print(f"target: {result.episodes:,} within {target:g} GB: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
