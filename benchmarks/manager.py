"""The run's own work per finished trajectory, with 32,000 trajectories in flight, on one core.

    python benchmarks/manager.py [--mode in_flight|dora] [--profile]

The real `Run` with its dispatcher, fleet, ledger, queue, trajectory index and metrics. Controllers,
engines and learner are stand-ins in the same process that answer at once: controllers hold 4,000 groups
of 8 and finish one per turn of the event loop, so that no two groups share a turn's work. Measured is the
time of the whole process (stand-ins included, so it is an upper bound) from the first learner step to the
last, over the trajectories that finished between: task, admission, dispatch, booking, indexing, queue,
batch, metrics, window. `wall` holds what the event loop waits for the disk, `CPU` does not. What Ray adds
to a dispatch is not in it (benchmarks/episodes.py has it).

Target: 2,000 finished trajectories per second, 0.5 ms of the event loop each (wall). Exits with 1 where it
is missed.
"""

import argparse
import asyncio
import cProfile
import io
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import ObjectRef
from rich.console import Console

from rl.actors.actor_method import Handle, actor_method, actor_method_pair
from rl.actors.controller import ControllerActor
from rl.actors.engine import EngineActor
from rl.actors.handles import Actors
from rl.actors.heartbeat import Heartbeat
from rl.actors.learner import LearnerActor
from rl.actors.local_handle import local_handle
from rl.config import RunConfig
from rl.loop.dispatcher import Dispatcher
from rl.loop.run import Run
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from rl.record.waiting import WaitingTable
from rl.samples.group import GroupReport, GroupSpec, MemberReport
from rl.trackers.trackers import Trackers
from rollout.placement import InProgress
from rollout.vllm_engine import LoadTimes
from trainer.sample import TrainSample
from trainer.step_result import StepResult

TRAJECTORIES, GROUP_SIZE, BATCH_GROUPS, ENGINES, STEPS = 32_000, 8, 512, 256, 9
GROUPS = TRAJECTORIES // GROUP_SIZE
TARGET_MS = 0.5
# The window in versions: so many that flight, queue and a step in progress fit into it.
VERSIONS = 9


def settings(mode: str, folder: str) -> RunConfig:
    """A run that keeps 4,000 groups in flight beside a batch in the queue and one in training."""
    return RunConfig.model_validate(
        {
            "name": mode,
            "runs_dir": folder,
            "steps": STEPS,
            "mode": mode,
            "max_staleness": VERSIONS,
            "live_versions": VERSIONS,
            "model": {"init": {}},
            "env": [{"id": "calculator"}, {"id": "sensors"}],
            "batch": {"groups": BATCH_GROUPS, "group_size": GROUP_SIZE},
            "engine": {"count": ENGINES},
            "rollout": {"max_in_flight_groups": GROUPS, "over_dispatch": VERSIONS + 1},
            "eval": {"before": False, "after": False},
            "wandb": {"enabled": False},
        }
    )


@dataclass
class Flight:
    """A group that the stand-in plays: its report is awaited, its trajectories sit on an engine."""

    spec: GroupSpec
    report: asyncio.Future[GroupReport]
    engine: str


class Controllers(ControllerActor):
    """All controllers: holds groups in flight, ends the oldest first, one per turn of the event loop."""

    def __init__(self) -> None:
        self.flights: dict[str, Flight] = {}
        self.finished = 0
        self.fewest = TRAJECTORIES

    @actor_method_pair
    async def play(self, spec: GroupSpec) -> tuple[GroupReport, list[TrainSample]]:
        report: asyncio.Future[GroupReport] = asyncio.get_running_loop().create_future()
        engine = f"engine-{len(self.flights) % ENGINES}"
        self.flights[spec.id] = Flight(spec, report, engine)
        return await report, []

    @actor_method
    async def waiting(self, count: int) -> WaitingTable:
        return WaitingTable((), {})

    @actor_method
    async def heartbeat(self) -> Heartbeat:
        return beat()

    async def _finish(self) -> None:
        """End a group whenever all places are taken; also where the run begins no more for a while."""
        idle = 0
        while True:
            await asyncio.sleep(0)
            idle += 1
            if self.flights and (len(self.flights) >= GROUPS or idle > 100):
                self.fewest = min(self.fewest, len(self.flights) * GROUP_SIZE)
                flight = self.flights.pop(next(iter(self.flights)))
                if not flight.report.done():  # given up
                    flight.report.set_result(finished(flight.spec))
                self.finished += GROUP_SIZE
                idle = 0

    @actor_method
    async def serve(self, versions: Mapping[str, int | None]) -> None:
        pass

    @actor_method
    async def leave(self, engines: Sequence[str], moves: Mapping[str, str]) -> None:
        for id, target in moves.items():
            if (flight := self.flights.get(id.partition(".")[0])) is not None:
                flight.engine = target

    @actor_method
    async def in_progress(self) -> list[InProgress]:
        return [
            InProgress(id, flight.spec.version, flight.engine, 100)
            for flight in self.flights.values()
            if flight.spec.version is not None
            for id in flight.spec.ids
        ]


def finished(spec: GroupSpec) -> GroupReport:
    """A group of which every other trajectory succeeded."""
    now = time.time()
    members = tuple(
        MemberReport(
            id=id,
            stop_reason="completed",
            judged=True,
            reward=float(n % 2),
            rewards={"solved": float(n % 2)},
            versions=(spec.version or 0,),
            num_turns=2,
            num_tokens=400,
            num_completion_tokens=100,
            num_malformed=0,
            num_bad_calls=0,
            phase_seconds={"reset": 0.1, "generate": 2.0, "tool": 0.5, "reply": 0.1, "score": 0.1},
            fault="",
            file="trajectories/controller-0.jsonl",
            offset=n,
        )
        for n, id in enumerate(spec.ids)
    )
    return GroupReport(spec, members, spec.ids, (), now - 3, now)


class Learner(LearnerActor):
    """Steps at once, and notes at each step how far the run is and what it has cost."""

    def __init__(self, controllers: Controllers) -> None:
        self.controllers = controllers
        self.marks: list[tuple[int, float, float]] = []
        self.profile = cProfile.Profile()
        self.profiled = False

    @actor_method
    def step(self, groups: Sequence[ObjectRef[list[TrainSample]]]) -> StepResult:
        self.marks.append((self.controllers.finished, time.process_time(), time.perf_counter()))
        if self.profiled:
            self.profile.enable() if len(self.marks) == 1 else None
            self.profile.disable() if len(self.marks) == STEPS else None
        return StepResult(
            {"learner/tokens": 40.0, "parity/tokens": 0.0, "parity/mean_abs_dlogp": 0.0}
        )

    @actor_method
    def lost(self, groups: Sequence[ObjectRef[list[TrainSample]]]) -> list[int]:
        return []

    @actor_method
    def record(self) -> list[tuple[str, int]]:
        return []

    @actor_method
    def snapshot(self, version: int) -> float:
        return 0.0

    @actor_method
    def publish(self, version: int, path: str) -> int:
        Path(path).touch()
        return 0

    @actor_method
    def save(self, folder: str, position: str) -> None:
        pass

    @actor_method
    def saved(self) -> None:
        pass


class Engine(EngineActor):
    """Takes every version at once."""

    def __init__(self) -> None:
        pass

    @actor_method
    async def stage(self, path: str, version: int) -> float:
        return 0.0

    @actor_method
    async def load(self, path: str, version: int) -> LoadTimes:
        return LoadTimes(pause_ms=0.0, swap_ms=0.0, staging_ms=0.0)

    @actor_method
    async def heartbeat(self) -> Heartbeat:
        return beat()


class LocalDispatcher(Dispatcher):
    """The dispatcher over stand-ins, which Ray cannot cancel."""

    def _cancel(self, group: str) -> None:
        report: Any = self.playing.get(group)
        if report is not None:
            report.cancel()


def beat() -> Heartbeat:
    """A stand-in's heartbeat."""
    return Heartbeat(os.getpid(), "127.0.0.1")


async def measure(mode: str, folder: str, *, profile: bool) -> bool:
    """Run to the end and print a row. Returns whether the target is met."""
    controllers = Controllers()
    learner = Learner(controllers)
    learner.profiled = profile
    engines = {f"engine-{n}": local_handle(Engine()) for n in range(ENGINES)}
    handle: Handle[ControllerActor] = local_handle(controllers)
    actors = Actors(local_handle(learner), dict(engines), {}, {"controller-0": handle})
    config = settings(mode, folder)
    run_folder = RunFolder(config)
    cluster: Any = SimpleNamespace(actors=actors, weights=Path(folder))
    progress = Progress(Console(file=io.StringIO()))
    run = Run(config, cluster, run_folder, progress, Trackers(run_folder))
    dispatcher = LocalDispatcher(actors, run.fleet, config.episode.max_seconds)
    run.dispatcher = run.rollouts.dispatcher = run.watch.dispatcher = dispatcher
    finishing = asyncio.create_task(controllers._finish())
    await run.main()
    finishing.cancel()
    run_folder.close()
    (first, cpu, wall), (last, cpu_end, wall_end) = learner.marks[0], learner.marks[-1]
    number = last - first
    each = 1e3 * (wall_end - wall) / number
    print(
        f"{mode:<10} {controllers.fewest:>14,} {number:>9,} {1e3 * (cpu_end - cpu) / number:>8.3f} "
        f"{each:>8.3f} {1e3 / each:>9,.0f}"
    )
    if profile:
        pstats.Stats(learner.profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)
    return each <= TARGET_MS


def main() -> int:
    """Both kinds of modes: weights that change in place, and several versions side by side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("in_flight", "dora"), action="append")
    parser.add_argument("--profile", action="store_true", help="where the time goes (slower)")
    asked = parser.parse_args()
    print("mode       in flight, min  finished   CPU ms  wall ms  per second  (ms per trajectory)")
    met = True
    for mode in asked.mode or ("in_flight", "dora"):
        with tempfile.TemporaryDirectory() as folder:
            met &= asyncio.run(measure(mode, folder, profile=asked.profile))
    print(f"target: at most {TARGET_MS} ms per trajectory: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
