"""Measures one vLLM engine: it writes what a run would play, with one or many sequences at a time.

An engine writes as many tokens in each turn as the trajectory's policy did, whatever they say: so every level
has the same work. The costs come from all turns of all levels, as those of a finished run do
(`rl.simulator.run_trace`).
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import psutil

from envs.env import Task
from rl.config import RunConfig
from rl.env_table import EnvTable
from rl.planning.workload import Groups, Played, expert_turns, play, reciting
from rl.simulator.run_trace import PlayedTurn
from rollout.engine import Request
from rollout.renderer import Renderer
from rollout.vllm_engine import VllmEngine

# For episodes of a policy that are longer than all of them together should take.
PLAY_SECONDS = 30.0


@dataclass(frozen=True)
class Replay:
    """A go of an engine at its trajectories. sequences: at most, at a time. seconds: of the wall.

    core, front: CPU seconds of vLLM's own processes, and of this one, which stands where an engine's actor
    does. others: CPU seconds of everybody else on the machine meanwhile.
    """

    sequences: int
    turns: tuple[PlayedTurn, ...]
    trajectories: int
    seconds: float
    core: float
    front: float
    others: float

    def plus(self, other: "Replay") -> "Replay":
        """This go and another one at as many sequences."""
        return Replay(
            sequences=self.sequences,
            turns=self.turns + other.turns,
            trajectories=self.trajectories + other.trajectories,
            seconds=self.seconds + other.seconds,
            core=self.core + other.core,
            front=self.front + other.front,
            others=self.others + other.others,
        )

    @property
    def rate(self) -> float:
        """Trajectories per second."""
        return self.trajectories / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second."""
        return sum(turn.completion_tokens for turn in self.turns) / self.seconds

    @property
    def cpus(self) -> float:
        """CPUs that the engine kept busy."""
        return (self.core + self.front) / self.seconds


@dataclass(frozen=True)
class Change:
    """A change of weights, in seconds: staging them between steps, and the pause."""

    staging: float
    pause: float


class EngineProbe:
    """One engine of a run, in this process."""

    def __init__(self, config: RunConfig, checkpoint: str, threads: int, *, compiled: bool) -> None:
        self.config = config
        settings = {"threads": threads, "compile": compiled}
        self.settings = config.engine.model_copy(update=settings)
        self.checkpoint = checkpoint
        self.renderer = Renderer(checkpoint, config.model.format)
        self.loop = asyncio.new_event_loop()
        self.numbers = count()

    def start(self) -> tuple[float, int]:
        """Start the engine. Returns the seconds that took, and how many tokens its cache holds."""
        return self.loop.run_until_complete(self._start())

    async def _start(self) -> tuple[float, int]:
        began = time.perf_counter()
        seed, ends = self.config.seed_of(self.config.seed), self.renderer.eos_ids
        self.engine = VllmEngine(
            "probe", self.checkpoint, self.settings, self.config.sampling, ends, seed
        )
        await self.engine.start()
        return time.perf_counter() - began, self.engine.cache_tokens

    def play(self, tasks: Sequence[tuple[EnvTable, Task]], at_once: int) -> Groups:
        """Groups of these tasks as the policy plays them."""
        generate = self.engine.generate
        act = play(self.config, tasks, self.renderer, lambda group: generate, at_once)
        return self.loop.run_until_complete(act)[0]

    def demonstrate(
        self, tasks: Sequence[tuple[EnvTable, Task]], at_once: int
    ) -> tuple[Groups, float]:
        """Groups of these tasks as experts play them, and the CPU seconds of an episode without engine."""

        async def demonstrated() -> tuple[Groups, float]:
            turns = await expert_turns(self.config, tasks, self.renderer)
            scripts = {group: reciting(said) for group, said in turns.items()}
            return await play(self.config, tasks, self.renderer, scripts.__getitem__, at_once)

        return self.loop.run_until_complete(demonstrated())

    def replay(self, groups: Groups, at_once: int, seconds: float) -> Replay:
        """Write groups, `at_once` at a time, and begin none after so many seconds."""
        return self.loop.run_until_complete(self._replay(groups, at_once, seconds))

    async def _replay(self, groups: Groups, at_once: int, seconds: float) -> Replay:
        await self.engine.llm.reset_prefix_cache()
        self.engine.eos_ids = ()  # every turn has the length that it had
        turns: list[PlayedTurn] = []
        ended = 0
        order = list(range(len(groups)))
        random.Random(at_once).shuffle(order)
        numbers = count()
        began, cpu, own = time.perf_counter(), _core_seconds(), time.process_time()
        everybody = _machine_seconds()

        async def slot() -> None:
            nonlocal ended
            while time.perf_counter() - began < seconds:
                number = next(numbers)
                cycle, index = divmod(number, len(order))
                members = groups[order[index]]
                await asyncio.gather(*(self._write(one, cycle, turns) for one in members))
                ended += len(members)

        await asyncio.gather(*(slot() for _ in range(at_once)))
        seconds = time.perf_counter() - began
        core, front = _core_seconds() - cpu, time.process_time() - own
        return Replay(
            sequences=at_once * len(groups[0]),
            turns=tuple(turns),
            trajectories=ended,
            seconds=seconds,
            core=core,
            front=front,
            others=max(0.0, _machine_seconds() - everybody - core - front),
        )

    async def _write(self, one: Played, cycle: int, turns: list[PlayedTurn]) -> None:
        """Write one trajectory. cycle: how often its group has been written before; it changes the first
        token, so that no cache has the rest."""
        session = f"replay-{next(self.numbers)}"
        context: tuple[int, ...] = ()
        for index, turn in enumerate(one.turns):
            read = turn.prompt_ids
            if not index and cycle:
                read = (read[0] + cycle, *read[1:])
            context += read
            request = Request(f"{session}/{index}", session, context, max(1, turn.written))
            start = time.time()
            completion = await self.engine.generate(request)
            written = completion.token_ids
            turns.append(PlayedTurn("probe", start, time.time(), len(read), len(written)))
            context += written
            if turn.seconds and index + 1 < len(one.turns):
                await asyncio.sleep(turn.seconds)

    def change(self, weights: Path) -> Change:
        """Change to the weights in a file, twice; the second time counts."""

        async def changed(version: int) -> Change:
            staging = await self.engine.stage(str(weights), version)
            times = await self.engine.load(str(weights), version)
            return Change(staging / 1e3, times.pause_ms / 1e3)

        acts = partial(self.loop.run_until_complete)
        acts(changed(1))
        return acts(changed(2))


def _machine_seconds() -> float:
    """CPU seconds of all processes on the machine so far."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def _core_seconds() -> float:
    """CPU seconds of vLLM's processes so far."""
    children = psutil.Process().children(recursive=True)
    return sum(sum(one.cpu_times()[:2]) for one in children)
