"""The trajectories that a run would play: a few groups of them, played by its policy or by experts.

A policy that is there plays itself. Where a cold start has yet to make it, its experts play.
In: the run's settings, tasks, a way to generate. Out: groups of `Played`, as token ids and seconds, which an
engine can write again by their lengths (`rl.planning.engine_probe`).
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from envs.env import Task
from envs.session import EnvSession, demonstrate
from reward.registry import find_judge
from reward.score import JudgeFault, score
from rl.config import RunConfig
from rl.env_table import EnvTable
from rl.samples.samples import train_sample
from rl.simulator.trajectory_plan import GroupPlan, Plan
from rollout.engine import Completion, Generate, Request, VersionSpan
from rollout.episode import Episode
from rollout.renderer import Renderer
from rollout.trajectory import ScoredTrajectory, Trajectory
from trainer.sample import TrainSample

# Phases of an episode in which the environment acts, between two turns.
ACTING = ("tool", "reply")


@dataclass(frozen=True)
class TurnLengths:
    """One turn: ids that the policy read new, tokens that it wrote, seconds of the environment after it."""

    prompt_ids: tuple[int, ...]
    written: int
    seconds: float


@dataclass(frozen=True)
class Played:
    """One trajectory, and the sample that the learner would get of it."""

    turns: tuple[TurnLengths, ...]
    sample: TrainSample

    @property
    def plan(self) -> Plan:
        """The trajectory as the simulator plays it."""
        told = [len(turn.prompt_ids) for turn in self.turns]
        return Plan(
            prompt_tokens=told[0],
            turns=tuple(max(1, turn.written) for turn in self.turns),
            tool_seconds=tuple(turn.seconds for turn in self.turns[:-1]),
            tool_tokens=round(fmean(told[1:])) if len(told) > 1 else 0,
        )


Groups = list[list[Played]]


def group_plans(groups: Groups, seed: int) -> Iterator[GroupPlan]:
    """The groups again and again, each time in another order; all of them are trained on."""
    rng, plans = random.Random(seed), [GroupPlan(tuple(p.plan for p in g), False) for g in groups]
    while True:
        rng.shuffle(plans)
        yield from plans


def tasks_of(config: RunConfig, count: int) -> list[tuple[EnvTable, Task]]:
    """Train tasks of so many groups, from the environments by their weights."""
    rng = random.Random(config.seed)
    sources = {t.label: t.make().tasks("train", config.seed_of(config.seed)) for t in config.env}
    weights = [table.weight for table in config.env]
    found: list[tuple[EnvTable, Task]] = []
    for table in rng.choices(config.env, weights, k=count):
        task = next(sources[table.label], None)
        if task is None:  # a data set that is smaller begins anew
            sources[table.label] = table.make().tasks("train", config.seed_of(config.seed) + 1)
            task = next(sources[table.label])
        found.append((table, task))
    return found


async def play(
    config: RunConfig,
    tasks: Sequence[tuple[EnvTable, Task]],
    renderer: Renderer,
    generate: Callable[[str], Generate],
    at_once: int,
) -> tuple[Groups, float]:
    """Play a group of each task, `at_once` groups at a time. Returns groups, and CPU seconds a trajectory of
    this process.

    generate: by a task's group, such as "g3". A group of which a member was not judged is left out.
    """
    room, began = asyncio.Semaphore(at_once), time.process_time()

    async def group(index: int, table: EnvTable, task: Task) -> list[ScoredTrajectory]:
        async with room:
            ids = [f"g{index}/{member}" for member in range(config.batch.group_size)]
            return await asyncio.gather(
                *(_play_one(config, table, task, id, renderer, generate(f"g{index}")) for id in ids)
            )

    every = await asyncio.gather(*(group(i, *one) for i, one in enumerate(tasks)))
    cpu = (time.process_time() - began) / max(1, sum(map(len, every)))
    whole = [g for g in every if all(m.trajectory.judged and m.trajectory.turns for m in g)]
    return [[_played(m) for m in g] for g in whole], cpu


async def _play_one(
    config: RunConfig,
    table: EnvTable,
    task: Task,
    id: str,
    renderer: Renderer,
    generate: Generate,
) -> ScoredTrajectory:
    episode = Episode(
        id=id,
        group=id.partition("/")[0],
        env=table.label,
        task=task,
        session=EnvSession(table.make(), table.deadlines.record),
        generate=generate,
        renderer=renderer,
        config=config.episode,
    )
    trajectory = await episode.run()
    try:
        judges = [find_judge(judge) for judge in table.judges]
        seconds = table.deadlines.score_seconds
        scored = await score(trajectory, judges, table.rewards, seconds=seconds)
    except JudgeFault:
        scored = ScoredTrajectory(trajectory, {}, 0.0)
    scored.as_json()  # what a controller writes of each
    return scored


def _played(member: ScoredTrajectory) -> Played:
    trajectory = member.trajectory
    turns = trajectory.turns
    acts = [p.seconds for p in trajectory.phases if p.name in ACTING]
    acts = (acts + [0.0] * len(turns))[: len(turns)]
    return Played(
        tuple(
            TurnLengths(turn.prompt_ids, len(turn.completion_ids), seconds)
            for turn, seconds in zip(turns, acts, strict=True)
        ),
        train_sample(trajectory, _advantage(trajectory)),
    )


def _advantage(trajectory: Trajectory) -> float:
    """An advantage of either sign: its size changes no time, but one of 0 would."""
    return 1.0 if int(trajectory.id.rpartition("/")[2]) % 2 else -1.0


async def expert_turns(
    config: RunConfig, tasks: Sequence[tuple[EnvTable, Task]], renderer: Renderer
) -> Mapping[str, list[tuple[int, ...]]]:
    """The expert's turns as ids, by group. Raises EnvFault, HostFault, ValueError."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for index, (table, task) in enumerate(tasks):
        _, said, _ = await demonstrate(table.make(), task)
        texts = [renderer.completion_text(m) for m in said if m.role == "assistant"]
        found[f"g{index}"] = [
            tuple(renderer.tokenizer.encode(text, add_special_tokens=False)) for text in texts
        ]
    return found


def reciting(turns: Sequence[tuple[int, ...]]) -> Callable[[Request], Awaitable[Completion]]:
    """An engine that writes these turns, as far as there is room, at once."""

    async def generate(request: Request) -> Completion:
        index = int(request.id.rpartition("/")[2])
        ids = turns[min(index, len(turns) - 1)]
        written = ids[: request.max_tokens]
        whole = len(written) == len(ids)
        return Completion(
            written,
            (0.0,) * len(written),
            (VersionSpan(0, 0, len(written)),),
            "stop" if whole else "length",
            "expert",
        )

    return generate


def limited(groups: Groups, count: int) -> list[TrainSample]:
    """So many samples, of all groups in turn, some of them again where there are fewer."""
    every = [one.sample for group in groups for one in group]
    return list(itertools.islice(itertools.cycle(every), count))
