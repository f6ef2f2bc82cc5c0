"""Five environments, one of which fails for a while: how soon it rests, and what the other four keep.

    python benchmarks/breaker.py [--how raise|tool|hang] [--json FILE]

The real run on a local Ray of its own: `Run`, a controller with the real renderer, two environment hosts.
Engines and learner are the stand-ins of `episodes.py`, but these engines answer every turn, a second later,
so that it is slots that are short and not CPU time. Of five environments of equal weight (four times the
calculator, and `tests/chaos_envs.py: Breaks`) the fifth

    works      for a while                                 -> episodes per second of the other four
    fails      at reset (raise), in its tools (tool), or
               its tools hang until a deadline (hang)      -> the same; seconds until its breaker trips
    works      again                                       -> seconds until it has its share back

Targets: it trips within 10 s; the other four keep their throughput within 10 % (they may gain, for they
have its share); it comes back by itself; the ledger has no remainder; no trajectory that failed has a reward.
Exits with 1 where one is missed.
"""

import argparse
import asyncio
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from episodes import StandInCluster, StandInEngine, first_turns
from rich.console import Console

from rl.actors.actor_method import actor_method
from rl.cold_start import first_checkpoint
from rl.config import RunConfig
from rl.loop.run import Run
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from rl.trackers.trackers import Trackers
from rollout.engine import Completion, Request, VersionSpan

TESTS = Path(__file__).parent.parent / "tests"
TURN_SECONDS = 1.0
WARM_SECONDS, SECONDS, PATIENCE = 8.0, 20.0, 90.0
TRIP_SECONDS, KEEP = 10.0, 0.9
BROKEN = "breaks"


def settings(folder: str, switch: Path) -> RunConfig:
    """Twenty groups of four in flight."""
    steady = [{"id": "calculator", "name": f"steady-{n}"} for n in range(4)]
    breaks = {"id": "chaos_envs:Breaks", "name": BROKEN, "config": {"file": str(switch)}}
    return RunConfig.model_validate(
        {
            "name": "breaker",
            "runs_dir": folder,
            "steps": 1_000_000,
            "model": {"init": {}},
            "env": [*steady, breaks | {"deadlines": {"tool_seconds": 3}}],
            "batch": {"groups": 4, "group_size": 4, "filter_zero_variance": False},
            "engine": {"count": 2, "cpus": 0},
            "learner": {"cpus": 0},
            "rollout": {"hosts": 2, "max_in_flight_groups": 20, "over_dispatch": 6},
            "max_staleness": 6,
            "eval": {"before": False, "after": False},
            "wandb": {"enabled": False},
        }
    )


class SteadyEngine(StandInEngine):
    """Answers every turn after the same time."""

    @actor_method
    async def generate(self, request: Request) -> Completion:
        """One turn."""
        await asyncio.sleep(TURN_SECONDS)
        first = request.id.partition("/")[2][0] == "0"
        ids = self.rng.choice(self.calls) if first else self.answer
        logprobs = tuple(-random.random() for _ in ids)
        return Completion(
            ids, logprobs, (VersionSpan(self.version, 0, len(ids)),), "stop", self.name
        )


class SteadyCluster(StandInCluster):
    """The cluster with these engines."""

    engine_kind = SteadyEngine


def ended(run: Run) -> int:
    """Episodes of the steady environments that have come to an end."""
    counts = run.book.ledger.counts()
    return sum(c["dispatched"] - c["in_flight"] for env, c in counts.items() if env != BROKEN)


async def rate(run: Run, seconds: float) -> float:
    """Episodes per second of the steady environments."""
    before, start = ended(run), time.monotonic()
    await asyncio.sleep(seconds)
    return (ended(run) - before) / (time.monotonic() - start)


async def until(condition: Callable[[], bool]) -> float:
    """Seconds until it holds; infinity after a while."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > PATIENCE:
            return float("inf")
        await asyncio.sleep(0.02)
    return time.monotonic() - start


async def drive(run: Run, switch: Path, how: str) -> dict[str, Any]:
    """Break the fifth, and mend it; what was seen."""
    rests = run.task_source.breakers[BROKEN]
    await until(lambda: ended(run) > 0)
    await asyncio.sleep(WARM_SECONDS)
    figures: dict[str, Any] = {"how": how, "works": await rate(run, SECONDS)}
    switch.write_text(how, encoding="utf-8")
    tripping = asyncio.create_task(until(lambda: rests.state == "open"))
    figures["fails"] = await rate(run, SECONDS)
    figures["trip_seconds"] = await tripping
    switch.unlink()
    figures["back_seconds"] = await until(lambda: rests.state == "closed")
    figures["kept"] = figures["fails"] / figures["works"]
    return figures


async def play(
    config: RunConfig, folder: RunFolder, checkpoint: str, switch: Path, how: str
) -> dict[str, Any]:
    """A run that is ended when all has been seen."""
    cluster = SteadyCluster(config, folder.path)
    try:
        cluster.first = await first_turns(config.env[0])
        cluster.connect()
        await cluster.start(checkpoint)
        run = Run(config, cluster, folder, Progress(Console(quiet=True)), Trackers(folder))
        running = asyncio.create_task(run.main())
        driving = asyncio.create_task(drive(run, switch, how))
        await asyncio.wait((running, driving), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        figures = await driving
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        books: Any = run.summary()["ledger"]
    finally:
        cluster.stop()
    counts = books["all"]
    figures["remainder"] = 2 * counts["dispatched"] - sum(counts.values())
    figures["ledger"] = books[BROKEN]
    return figures


def scored_faults(folder: RunFolder) -> int:
    """Trajectories that ended in a fault and have a reward all the same."""
    rows = sqlite3.connect(folder.path / "trajectories.sqlite").execute(
        "select count(*) from trajectories where stop_reason like '%fault%' and reward is not null"
    )
    return rows.fetchone()[0]


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--how", choices=("raise", "tool", "hang"), default="raise")
    parser.add_argument("--json", type=Path, help="write what was measured to this file, too")
    asked = parser.parse_args()
    sys.path.append(str(TESTS))
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    with tempfile.TemporaryDirectory() as temporary:
        switch = Path(temporary) / "how"
        config = settings(temporary, switch)
        checkpoint, _ = first_checkpoint(config, lambda *_: None)
        folder = RunFolder(config)
        figures = asyncio.run(play(config, folder, checkpoint, switch, asked.how))
        figures["scored_faults"] = scored_faults(folder)
        folder.close()
    print(json.dumps(figures, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    met = (
        figures["trip_seconds"] <= TRIP_SECONDS
        and figures["kept"] >= KEEP
        and figures["back_seconds"] < PATIENCE
        and figures["remainder"] == figures["scored_faults"] == 0
    )
    print(
        f"target: trips within {TRIP_SECONDS:g} s, others keep 90 %: {'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
