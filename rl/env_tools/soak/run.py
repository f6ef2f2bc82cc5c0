"""`dorado env soak`: an environment under load, played by its expert over real host processes.

The path is a run's: `rollout.episode`, `HostSession`, `HostPool`, hosts in Ray actors. Only the policy
is the expert's, and the hosts are watched (`rl.env_tools.soak.host`). Ray is real because what is proved
here, that a killed host comes back and nobody waits for the dead one, is half Ray's doing; it is an instance
of this command's own, ended with it.

Left out: several controllers, and engines. Nothing here is about weights or tokens.
"""

import asyncio
import itertools
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError, RayError

from envs.env import Env, Task
from envs.text import told
from rl.actors.host_pool import HostPool, HostSession
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.env_tools.soak.expert_policy import ExpertPolicy
from rl.env_tools.soak.figures import Figures, Left, Percentiles, Plan, Played, percentiles
from rl.env_tools.soak.host import Census, SoakHost
from rl.env_tools.soak.leaks import given, left, lives
from rl.env_tools.soak.session import Gate, Load, Watched
from rl.nodes.deadline import within
from rl.nodes.local_ray import start_local_ray
from rl.nodes.process import end_processes, first_line
from rl.samples.metrics import passed
from rollout.config import EpisodeConfig
from rollout.engine import Completion, Request
from rollout.episode import Episode
from rollout.trajectory import Trajectory

Say = Callable[[str], None]
# A host's process has to start, and import what the environment imports.
START_SECONDS = 120.0
# What is closed has to be gone within this time after the environment's own deadline for it.
SETTLE_SECONDS = 10.0
LOOK_SECONDS = 0.1
# Of a task whose host is killed under it.
MOST_ATTEMPTS = 4
# Far above what an expert needs: here an environment's own deadlines are what ends an episode.
EPISODE = EpisodeConfig(
    max_turns=1000, max_completion_tokens=1, max_tokens=1_000_000, max_seconds=600
)


class SoakError(Exception):
    """The soak itself cannot go on; the message is one sentence."""


def check_expert(table: EnvTable) -> None:
    """Raises ConfigError where there is no expert to play the environment."""
    if type(table.make()).expert is Env.expert:
        raise ConfigError(f"env {table.label!r}: offers no expert, and a soak is played by it")


@contextmanager
def own_ray() -> Iterator[None]:
    """A Ray instance of this command's own; nothing of it is left afterwards. Raises SoakError."""
    try:
        start_local_ray(object_store_mib=128)
    except Exception as error:  # of a machine that is too busy it raises just that
        raise SoakError(f"Ray did not start: {first_line(error)}") from None
    processes = psutil.Process().children(recursive=True)
    try:
        yield
    finally:
        processes += psutil.Process().children(recursive=True)
        ray.shutdown()
        end_processes(processes)


def soak(table: EnvTable, plan: Plan, say: Say) -> Figures:
    """Inside `own_ray`. Raises SoakError."""
    folder = Path(tempfile.mkdtemp(prefix="dorado-soak-"))
    try:
        return asyncio.run(_Soak(table, plan, folder, say).run())
    finally:
        end_processes(given(folder))
        shutil.rmtree(folder, ignore_errors=True)


class _Soak:
    def __init__(self, table: EnvTable, plan: Plan, folder: Path, say: Say) -> None:
        self.table = table
        self.plan = plan
        self.folder = folder
        self.say = say
        self.rng = random.Random(plan.seed)
        self.env = table.make()
        self.tasks = itertools.cycle(self._some_tasks())
        self.numbers = itertools.count()
        self.played: list[Played] = []
        self.load = Load()
        self.begun = self.played_again = 0
        self.killed: list[int] = []
        self.outlived: list[psutil.Process] = []

    def _some_tasks(self) -> list[Task]:
        """Draw tasks; from an endless stream so many that hardly two of a round are the same."""
        stream = self.env.tasks("train", self.plan.seed)
        try:
            return list(itertools.islice(stream, self.plan.episodes))
        except (Exception, SystemExit) as error:  # an author's code
            raise SoakError(f"env {self.table.label!r}: tasks() raises {told(error)}") from None

    async def run(self) -> Figures:
        self.hosts = self._place()
        try:
            await self._ready()
            return await self._run()
        finally:
            for host in self.hosts:
                ray.kill(host, no_restart=True)

    def _place(self) -> list[Any]:
        log, temporary = str(self.folder / "hosts.log"), str(self.folder / "tmp")
        actor: Any = ray.remote(SoakHost)
        variables = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        placed = actor.options(
            num_cpus=0,
            max_concurrency=100_000,
            max_restarts=-1,
            runtime_env={"env_vars": variables},
        )
        return [placed.remote((self.table,), log, temporary) for _ in range(self.plan.hosts)]

    async def _ready(self) -> None:
        try:
            await within(asyncio.gather(*(h.ping.remote() for h in self.hosts)), START_SECONDS)
        except TimeoutError:
            raise SoakError(
                f"env {self.table.label!r}: no host ready in {START_SECONDS:g} s"
            ) from None
        except RayError as error:
            raise SoakError(
                f"env {self.table.label!r}: its host cannot start: {first_line(error)}"
            ) from None

    async def _run(self) -> Figures:
        plan, self.pool = self.plan, HostPool(self.hosts)
        self.say("warm-up")
        await self._round()
        base = await self._censuses(None)
        await self._times()
        start, calm_before = time.perf_counter(), len(self.played)
        for number in itertools.count(1):
            self.say(f"round {number}")
            await self._round()
            spent = time.perf_counter() - start
            if spent >= plan.seconds if plan.seconds else number == plan.rounds:
                break
        seconds = time.perf_counter() - start
        measured = self.played[calm_before:]
        calm = left(base, await self._censuses(base))
        times = await self._times()
        if plan.cancel or plan.kills:
            self.say("disturbed round")
            await self._disturbed_round(sum(p.acts for p in measured) / max(1, len(measured)))
        end = left(base, await self._censuses(base), orphans=self._orphans())
        return self._figures(measured, seconds, times, calm, end)

    def _figures(
        self,
        measured: Sequence[Played],
        seconds: float,
        times: Mapping[str, Sequence[float]],
        calm: Left,
        end: Left,
    ) -> Figures:
        not_full = [p for p in self.played if p.outcome == "completed" and not p.full]
        faults = [p for p in self.played if p.fault and p.outcome != "host_fault"]
        worst = faults[0].fault if faults else ""
        if not_full and not worst:
            worst = f"task {not_full[0].id}: {dict(not_full[0].rewards)}"
        return Figures(
            env=self.table.label,
            plan=self.plan,
            most_at_once=self.load.most_at_once,
            outcomes=dict(Counter(p.outcome for p in self.played)),
            begun=self.begun,
            not_full=len(not_full),
            complaint=worst,
            calls_per_second=round(sum(p.acts for p in measured) / seconds, 1),
            at_host={name: percentiles(one) for name, one in times.items() if one},
            seen=_seen(measured),
            calm=calm,
            calm_episodes=len(measured) // self.plan.hosts,
            after_all=end,
            killed=len(self.killed),
            played_again=self.played_again,
            hosts_back=not self.pool.down,
            close_faults=self._close_faults(),
            left_by_killed=sum(
                len(list((self.folder / "tmp" / str(pid)).rglob("*"))) for pid in self.killed
            ),
        )

    async def _round(self) -> None:
        tasks = list(itertools.islice(self.tasks, self.plan.episodes))
        gate = Gate(len(tasks))
        self.played += await asyncio.gather(*(self._episode(t, gate) for t in tasks))

    async def _disturbed_round(self, acts_each: float) -> None:
        """Episodes that are cancelled, and hosts that are killed under others, which are played again."""
        tasks = list(itertools.islice(self.tasks, self.plan.episodes))
        gate = Gate(len(tasks))
        before = self.load.acts
        killer = asyncio.create_task(self._kill_hosts(before, acts_each * len(tasks)))

        async def play(task: Task) -> list[Played]:
            at = self.rng.randrange(max(1, round(acts_each)))
            cancel_at = at if self.rng.random() < self.plan.cancel else None
            found = [await self._episode(task, gate, cancel_at)]
            while found[-1].outcome == "host_fault" and len(found) < MOST_ATTEMPTS:
                self.played_again += 1
                found.append(await self._episode(task, None))
            return found

        for one in await asyncio.gather(*map(play, tasks)):
            self.played += one
        await killer
        for task in tuple(self.pool.down.values()):
            await asyncio.wait([task], timeout=START_SECONDS)

    async def _kill_hosts(self, acts_before: int, acts_expected: float) -> None:
        """One after another, spread over the round's acts."""
        kills = self.plan.kills
        for number in range(kills):
            due = acts_before + acts_expected * (number + 1) / (kills + 1)
            give_up = time.monotonic() + EPISODE.max_seconds
            while self.load.acts < due and self.load.open_now and time.monotonic() < give_up:
                await asyncio.sleep(LOOK_SECONDS / 10)
            index = number % len(self.hosts)
            try:
                pid = await within(self.hosts[index].process_id.remote(), START_SECONDS)
            except (TimeoutError, RayActorError):
                continue
            self.outlived += psutil.Process(pid).children(recursive=True)
            self.killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    async def _episode(self, task: Task, gate: Gate | None, cancel_at: int | None = None) -> Played:
        number = next(self.numbers)
        id = f"soak-{number}"
        self.begun += 1
        policy = ExpertPolicy(
            self.env.expert(task), random.Random(number), self.plan.latency_ms / 1e3
        )
        arrived = gate is None
        session = Watched(HostSession(self.pool, id, self.table), self.load, cancel_at)

        async def generate(request: Request) -> Completion:
            nonlocal arrived
            if gate is not None and not arrived:
                arrived = True
                gate.arrive()
                await gate.all_there.wait()
            return await policy.generate(request)

        episode = Episode(
            id=id,
            group=id,
            env=self.table.label,
            task=task,
            session=session,
            generate=generate,
            renderer=policy,
            config=EPISODE,
        )
        playing = asyncio.create_task(episode.run())
        try:
            trajectory = await playing
        except asyncio.CancelledError:
            if not playing.cancelled():  # It is we who are to end.
                playing.cancel()
                raise
            trajectory = None
        finally:
            if gate is not None and not arrived:
                gate.arrive()
        return self._outcome(task, episode, trajectory)

    def _outcome(self, task: Task, episode: Episode, trajectory: Trajectory | None) -> Played:
        seconds: dict[str, list[float]] = defaultdict(list)
        for phase in episode.clock.phases:
            if phase.name in ("reset", "tool", "reply", "score"):
                seconds[phase.name].append(phase.seconds)
        if trajectory is None:
            outcome, rewards, fault = "cancelled", {}, ""
        else:
            judged = trajectory.judged
            outcome = trajectory.stop_reason
            rewards, fault = trajectory.env_rewards if judged else {}, trajectory.fault
            if judged and outcome != "completed":
                fault = f"the expert was at it for {EPISODE.max_turns} turns"
        return Played(
            id=task.id,
            outcome=outcome,
            full=outcome == "completed" and passed(rewards, sum(rewards.values())),
            rewards=rewards,
            fault=fault,
            seconds={name: tuple(one) for name, one in seconds.items()},
        )

    async def _times(self) -> dict[str, list[float]]:
        """Collect what the hosts measured since the last call."""
        found: dict[str, list[float]] = defaultdict(list)
        for host in self.hosts:
            for phase, seconds in (await within(host.take_times.remote(), START_SECONDS)).items():
                found[phase] += seconds
        return found

    async def _censuses(self, base: Sequence[Census] | None) -> list[Census]:
        """Take each host's census once what episodes leave is gone, or has had its time to go."""
        give_up = time.monotonic() + self.table.deadlines.close_seconds + SETTLE_SECONDS
        while True:
            found = list(await asyncio.gather(*map(_census, self.hosts)))
            still = left(base or found, found)
            gone = all(
                getattr(still, field.name) == 0
                for field in fields(Left)
                if field.name not in ("memory_mib", "files", "threads")
            )
            if gone or time.monotonic() > give_up:
                return found
            await asyncio.sleep(LOOK_SECONDS)

    def _close_faults(self) -> int:
        """A host says so in its log only: the outcome of an episode stands before its close."""
        log = self.folder / "hosts.log"
        return log.read_text(errors="replace", encoding="utf-8").count(
            f"environment {self.env.name!r}, close: "
        )

    def _orphans(self) -> int:
        """Processes that belong to a host that was killed: by descent, or by the folder they were given."""
        marked = [p for pid in self.killed for p in given(self.folder / "tmp" / str(pid))]
        alive = {p.pid: p for p in (*self.outlived, *marked) if lives(p)}
        end_processes(list(alive.values()))
        return len(alive)


async def _census(host: Any) -> Census:
    """Take the census of one host, asked again while Ray starts it anew after it was killed."""
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            return await within(host.census.remote(), START_SECONDS)
        except RayActorError:
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(LOOK_SECONDS)


def _seen(played: Iterable[Played]) -> dict[str, Percentiles]:
    seconds: dict[str, list[float]] = defaultdict(list)
    for one in played:
        for phase, found in one.seconds.items():
            seconds[phase] += found
    return {phase: percentiles(found) for phase, found in seconds.items()}
