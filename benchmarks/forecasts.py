"""Forecasts of pass rates: who predicts best, what choosing by them saves, and what the graph costs.

    python benchmarks/forecasts.py [--part recorded|learning|cost] [--run FOLDER] [--seeds 3]

recorded: outcomes of a recorded run (default: that of `dorado dashboard --demo`) in the order in which its
groups began, each forecast before it is learnt. Log-loss per episode and calibration error, of the Beta
posterior, of FLGP, of the environment's running mean, and of the running mean of the task itself (0.5 before
it was played).

learning: a policy that learns, simulated in this process. It answers a task right or wrong, with probability
sigmoid(weights · x - h), where x are four properties of the task and h is how hard it is, and is trained by
the policy gradient of groups of eight, their advantages relative to the group; groups without variance are
left out. A step is eight groups. Steps until a policy passes 0.7 of held-out tasks, and the share of groups
without variance, with the tasks as they come and chosen by each forecast; of tasks that come again (a pack
of 500) and of those that never do. FLGP sees x with noise and does not see h. No engine, no tokens: it says
what a choice does to a learner of this kind, and is no measurement of a language model.

cost: CPU seconds to build the graph over 1,000, 10,000 and 100,000 tasks and to forecast all of them after
1,000 outcomes, and the exponent of growth from the second to the third.

Targets: FLGP's log-loss on tasks that never come again below the running mean's; FLGP's growth at most
linear (exponent 1.2). Exits with 1 where one is missed.
"""

import argparse
import json
import random
import sqlite3
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from envs.env import Task
from rl.dashboard.demo import ARCHIVE
from rl.env_table import ChoiceConfig
from rl.samples.group import GroupReport, GroupSpec, MemberReport
from rl.tasks.calibration import calibration_error, log_loss
from rl.tasks.choice import TaskChoice
from rl.tasks.forecast import BetaForecaster, Counts, Forecast, Forecaster, TaskOutcome, key_of
from rl.tasks.graph_forecast import Graph, GraphForecaster, expectations, fit_time
from rl.tasks.task_features import WIDTH, encoded

PARTS = ("recorded", "learning", "cost")
FORGET = 0.9
GROUP = 8
GROUPS = 8
PROPERTIES = 4
TARGET = 0.7
MOST_STEPS = 400
RATE = 0.02
PACK = 500
SIZES = (1_000, 10_000, 100_000)
LINEAR = 1.2


class RunningMean:
    """The forecast of `Forecaster.base_rate`, or of a task's own outcomes without forgetting."""

    def __init__(self, own: bool) -> None:
        self.own = own
        self.all = BetaForecaster(FORGET, GROUP)
        self.tasks: dict[str, Counts] = {}

    def rate(self, task: Task) -> float:
        if not self.own:
            return self.all.base_rate
        counts = self.tasks.get(key_of(task), Counts())
        return counts.passes / (counts.passes + counts.fails) if counts != Counts() else 0.5

    def learn(self, task: Task, outcome: TaskOutcome) -> None:
        self.all.learn(task, outcome)
        self.tasks[key_of(task)] = self.tasks.get(key_of(task), Counts()).plus(outcome, 1.0)


Rival = BetaForecaster | GraphForecaster | RunningMean


def rivals() -> dict[str, Rival]:
    """Everything that is held against each other, by name."""
    return {
        "beta": BetaForecaster(FORGET, GROUP),
        "flgp": GraphForecaster(FORGET, GROUP, lambda task: encoded({"task": task.data})),
        "running mean": RunningMean(own=False),
        "running mean of the task": RunningMean(own=True),
    }


def rate_of(rival: Rival, task: Task) -> float:
    """The pass rate that a rival expects of a task."""
    if isinstance(rival, RunningMean):
        return rival.rate(task)
    (forecast,) = rival.forecast([task])
    return forecast.rate


def scores(stream: Iterator[tuple[Task, TaskOutcome]]) -> dict[str, tuple[float, float]]:
    """Log-loss and calibration error of each rival on a stream, every group forecast and then learnt."""
    every = rivals()
    said: dict[str, list[tuple[float, int, int]]] = {name: [] for name in every}
    for task, outcome in stream:
        for name, rival in every.items():
            said[name].append((rate_of(rival, task), outcome.passes, outcome.episodes))
            rival.learn(task, outcome)
    return {name: (log_loss(some), calibration_error(some)) for name, some in said.items()}


def recorded(folder: Path) -> dict[str, list[tuple[Task, TaskOutcome]]]:
    """Training groups of a recorded run by environment, in the order in which they began."""
    db = sqlite3.connect(folder / "trajectories.sqlite")
    rows = db.execute(
        "select env, grp, reward, first_version, file, offset from trajectories "
        "where split = 'train' and reward is not null order by start, grp"
    ).fetchall()
    groups: dict[tuple[str, str], list[tuple[float, int, str, int]]] = defaultdict(list)
    for env, group, *rest in rows:
        groups[env, group].append(tuple(rest))
    found: dict[str, list[tuple[Task, TaskOutcome]]] = defaultdict(list)
    for (env, _), members in groups.items():
        with (folder / members[0][2]).open("rb") as file:
            file.seek(members[0][3])
            task = json.loads(file.readline())["task"]
        passes = sum(reward >= 1 for reward, *_ in members)
        version = min(version for _, version, *_ in members)
        outcome = TaskOutcome(passes, len(members), version, by_chance=True)
        found[env].append((Task(task["env"], task["data"]), outcome))
    return found


def show_recorded(folder: Path) -> None:
    """Print the scores of a recorded run."""
    for env, groups in recorded(folder).items():
        tasks = {key_of(task) for task, _ in groups}
        print(f"\n{env}: {len(groups)} groups of {len(tasks)} tasks")
        print(f"  {'forecast':26s} log-loss   calibration error")
        for name, (loss, error) in scores(iter(groups)).items():
            print(f"  {name:26s} {loss:8.3f}   {error:8.3f}")


@dataclass
class Policy:
    """Answers a task right with probability sigmoid(weights · x - h)."""

    weights: np.ndarray
    rng: np.random.Generator

    def rate(self, task: Task) -> float:
        return float(self.rates(np.array(task.data["x"]), task.data["h"]))

    def rates(self, x: np.ndarray, h: np.ndarray | float) -> np.ndarray:
        return 1 / (1 + np.exp(h - x @ self.weights))

    def play(self, task: Task) -> list[float]:
        return (self.rng.random(GROUP) < self.rate(task)).astype(float).tolist()

    def train(self, batch: Sequence[tuple[Task, list[float]]]) -> None:
        """One step of the policy gradient, over the groups that have variance."""
        slope = np.zeros_like(self.weights)
        for task, rewards in batch:
            some = np.array(rewards)
            if some.std() > 0:
                advantages = (some - some.mean()) / some.std()
                rate = self.rate(task)
                slope += (advantages * (some - rate)).mean() * np.array(task.data["x"])
        self.weights = self.weights + RATE * slope


def task_stream(seed: str, count: int | None) -> Iterator[Task]:
    """Simulated tasks; count: that many come again and again, in a new order each time; None: none does."""
    rng = random.Random(seed)

    def made() -> Task:
        x = [abs(rng.gauss(0, 1)) for _ in range(PROPERTIES)]
        return Task(
            "simulated", {"x": x, "seen": [v + rng.gauss(0, 0.3) for v in x], "h": rng.gauss(5, 3)}
        )

    if count is None:
        while True:
            yield made()
    tasks = [made() for _ in range(count)]
    while True:
        yield from rng.sample(tasks, len(tasks))


def seen(task: Task) -> np.ndarray:
    """Features of a simulated task, as FLGP knows them."""
    return np.array(task.data["seen"])


def choice_of(name: str, seed: int) -> TaskChoice:
    """A choice of tasks; "uniform" is one that always takes the next one."""
    forecaster: Forecaster = BetaForecaster(FORGET, GROUP)
    if name == "flgp":
        forecaster = GraphForecaster(FORGET, GROUP, seen)
    config = ChoiceConfig(forecast="flgp" if name == "flgp" else "beta", candidates=8)
    if name == "uniform":
        config = config.model_copy(update={"explore": 1.0})
    return TaskChoice(config, forecaster, str(seed))


@dataclass(frozen=True)
class Learned:
    """One simulated training: steps to the target, and over its first fifty steps the share of groups without
    variance and the log-loss of the forecasts and of the base rate."""

    steps: int
    zero_variance: float
    log_loss: float
    base: float


def train(name: str, count: int | None, seed: int) -> Learned:
    """Train a policy on tasks chosen so."""
    policy = Policy(np.full(PROPERTIES, 0.3), np.random.default_rng(seed))
    heldout = list(islice(task_stream(f"heldout/{seed}", None), 400))
    x, h = (np.array([task.data[name] for task in heldout]) for name in ("x", "h"))
    tasks = task_stream(f"train/{seed}", count)
    choice = choice_of(name, seed)
    empty: list[bool] = []
    said: list[tuple[Forecast, float, int]] = []
    for step in range(MOST_STEPS):
        if policy.rates(x, h).mean() >= TARGET:
            break
        batch: list[tuple[str, Task, list[float]]] = []
        for n in range(GROUPS):
            task, chosen = choice.next(lambda: next(tasks))
            choice.begin(f"{step}/{n}", task, chosen)
            batch.append((f"{step}/{n}", task, policy.play(task)))
        for group, task, rewards in batch:
            begun = choice.begun[group]
            choice.end(report(group, task, rewards, step))
            if step < 50:
                empty.append(len(set(rewards)) == 1)
                said.append((begun.forecast, begun.base_rate, int(sum(rewards))))
        policy.train([(task, rewards) for _, task, rewards in batch])
    else:
        step = MOST_STEPS
    return Learned(
        step,
        fmean(empty),
        log_loss([(f.rate, passes, GROUP) for f, _, passes in said]),
        log_loss([(base, passes, GROUP) for _, base, passes in said]),
    )


def report(group: str, task: Task, rewards: Sequence[float], version: int) -> GroupReport:
    """A group as a run reports it."""
    members = tuple(
        MemberReport(
            f"{group}.{n}", "completed", True, reward, {"solved": reward}, (version,),
            1, 1, 1, 0, 0, {}, "", "", 0,
        )
        for n, reward in enumerate(rewards)
    )  # fmt: skip
    spec = GroupSpec(group, "simulated", task, tuple(m.id for m in members), train=True)
    return GroupReport(spec, members, (), (), 0.0, 0.0)


def show_learning(seeds: int) -> list[str]:
    """Print what a choice does to a policy that learns. Returns what missed its target."""
    missed: list[str] = []
    for kind, count in ((f"a pack of {PACK}", PACK), ("tasks that never come again", None)):
        print(f"\n{kind}, {seeds} seeds (mean, standard deviation)")
        print(f"  {'tasks':10s} steps to {TARGET}   no variance   log-loss   base rate")
        for name in ("uniform", "beta", "flgp"):
            runs = [train(name, count, seed) for seed in range(seeds)]
            steps = [float(run.steps) for run in runs]
            spread = stdev(steps) if seeds > 1 else 0.0
            empty = fmean(run.zero_variance for run in runs)
            loss, base = fmean(r.log_loss for r in runs), fmean(r.base for r in runs)
            print(
                f"  {name:10s} {fmean(steps):7.1f} ({spread:5.1f})   {empty:11.3f}"
                f"   {loss:8.3f}   {base:8.3f}"
            )
            if name == "flgp" and count is None and loss >= base:
                missed.append("FLGP's log-loss on new tasks is not below the running mean's")
    return missed


def show_cost() -> list[str]:
    """Print FLGP's cost by the number of tasks. Returns what missed its target."""
    print("\ntasks     graph s   fit of 1,000 outcomes s   forecast of all s   together")
    rng = np.random.default_rng(0)
    taken: list[float] = []
    for size in SIZES:
        points = rng.normal(size=(size, WIDTH))
        labels = rng.integers(0, GROUP + 1, 1000).astype(float)
        times = [time.process_time()]
        graph = Graph(points)
        times.append(time.process_time())
        fit = fit_time(graph.eigenvectors(points[:1000]), graph.kernel, labels, GROUP - labels)
        times.append(time.process_time())
        vectors = graph.eigenvectors(points) * graph.kernel.damping(fit.time)
        expectations(*fit.posterior.logits(vectors), GROUP)
        times.append(time.process_time())
        parts = np.diff(times)
        taken.append(float(parts.sum()))
        print(f"{size:7,d} {parts[0]:9.2f} {parts[1]:15.2f} {parts[2]:22.2f} {taken[-1]:15.2f}")
    exponent = float(np.log10(taken[2] / taken[1]))
    print(f"from {SIZES[1]:,} to {SIZES[2]:,} the CPU seconds grow by the power {exponent:.2f}")
    return [f"FLGP's cost grows by the power {exponent:.2f}"] if exponent > LINEAR else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    parts = args.part or PARTS
    missed: list[str] = []
    if "recorded" in parts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.run
            if folder is None:
                with tarfile.open(ARCHIVE) as archive:
                    archive.extractall(temporary, filter="data")
                (folder,) = Path(temporary).iterdir()
            show_recorded(folder)
    if "learning" in parts:
        missed += show_learning(args.seeds)
    if "cost" in parts:
        missed += show_cost()
    for sentence in missed:
        print("missed:", sentence)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
