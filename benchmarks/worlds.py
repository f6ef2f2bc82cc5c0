"""Generated worlds: 10,000 verified tasks over 20 domains, how they came about, and what breaks them.

    python benchmarks/worlds.py [--tasks N] [--seed S] [--processes P] [--pack FOLDER] [--json FILE]

Makes a pack (or takes one), and says: the time, tries by outcome, tools used, lengths of chains, shapes.
Then, from the pack alone: tasks verified again in a fresh process, the expert, a random policy, mutations
with another seed than those that the tasks were accepted with, a weak solver by each dimension of difficulty,
and the memory of open worlds.

Targets: every task verified again holds; the expert solves all; the random policy at most 2 %; at least 99 %
of mutations are rejected. Exits with 1 where one is missed."""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from envs.generated.books import Refused
from envs.generated.chain import Broken, Step, play, resolved
from envs.generated.domain_file import builtin_names
from envs.generated.environment import domain_called
from envs.generated.mutations import mutated
from envs.generated.pack import Pack
from envs.generated.population import random_value
from envs.generated.task_data import GeneratedTask
from envs.generated.tool_graph import structure
from envs.generated.verification import said
from envs.generated.world import World
from rl.env_tools.packs import Order, chosen_domains, generate, make_part

AGAIN = """
import json, random, sys
from pathlib import Path
from envs.generated.pack import Pack
from envs.generated.verification import Rejected, verified
pack, wrong = Pack(Path(sys.argv[1])), []
for id in json.loads(sys.argv[2]):
    task = pack.task(id)
    try:
        verified(pack.domains[task.domain], task, random.Random(f"again {id}"))
    except Rejected as error:
        wrong.append([id, str(error)])
print(json.dumps(wrong))
"""


def sampled(pack: Pack, count: int, seed: int) -> list[int]:
    """Ids of tasks."""
    ids = range(pack.sheet["tasks"])
    return random.Random(seed).sample(ids, min(count, len(ids)))


def again(pack: Pack, count: int) -> dict[str, Any]:
    """Tasks verified again in a fresh process, from the pack and their ids alone."""
    ids = sampled(pack, count, 1)
    command = [sys.executable, "-c", AGAIN, str(pack.folder), json.dumps(ids)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    wrong = json.loads(done.stdout)
    return {"tasks": len(ids), "not accepted again": wrong}


def expert(pack: Pack, count: int) -> dict[str, Any]:
    """The share of tasks that the chain solves, played on a fresh world each."""
    solved = 0
    ids = sampled(pack, count, 2)
    for id in ids:
        task = pack.task(id)
        world = task.world(pack.domains[task.domain])
        solved += task.rubric.holds(world, said(task, play(world, task.steps)))
        world.close()
    return {"tasks": len(ids), "solved": solved / len(ids)}


def random_calls(world: World, rng: random.Random, turns: int) -> None:
    """A policy that knows the tools and the ids, and nothing else."""
    for _ in range(turns):
        tool = rng.choice(list(world.domain.tools.values()))
        args: dict[str, object] = {}
        for name, spec in tool.args.items():
            if spec.kind == "ref":
                value: object = rng.choice(world.rows(spec.entity) or [{"id": "?"}])["id"]
            elif spec.kind == "label":
                value = "Ada Berg"
            else:
                value = random_value(spec, rng, {}, set())
            args[name] = [value] if spec.many else value
        try:
            world.call(tool.name, args)
        except Refused:
            continue


def random_policy(pack: Pack, count: int) -> dict[str, Any]:
    """As many random calls as the chain has."""
    solved = 0
    ids = sampled(pack, count, 3)
    for id in ids:
        task = pack.task(id)
        rng = random.Random(id)
        world = task.world(pack.domains[task.domain])
        random_calls(world, rng, len(task.steps))
        answer = task.rubric.answer and rng.choice([task.rubric.answer, "yes", "no", "3"])
        solved += task.rubric.holds(world, answer or "done")
        world.close()
    return {"tasks": len(ids), "solved": solved / len(ids)}


def mutations(pack: Pack, tasks: int) -> dict[str, Any]:
    """Ten fresh mutations of each task."""
    kinds: Counter[str] = Counter()
    passed: list[list[Any]] = []
    for id in sampled(pack, tasks, 4):
        task = pack.task(id)
        world = task.world(pack.domains[task.domain])
        for kind, passes in mutated(world, task, random.Random(f"fresh {id}"), 10):
            kinds[kind] += 1
            if passes:
                passed.append([id, kind])
        world.close()
    total = sum(kinds.values())
    return {
        "mutations": total, "rejected": 1 - len(passed) / total, "kinds": dict(kinds),
        "passed": passed,
    }  # fmt: skip


def weak_solver(task: GeneratedTask, world: World, rng: random.Random) -> bool:
    """Plays the chain as a careless agent: it forgets a step in twenty, reads the first page of a list alone,
    never asks the user and never makes a busy call again. The rubric judges what comes of it."""
    gave: list[dict[str, Any]] = []
    for step in task.steps:
        asks = world.domain.tools[step.tool].kind == "ask"
        forgets = rng.random() < 0.05
        try:
            gave.append({} if asks or forgets else _once(world, step, gave))
        except (Broken, Refused):
            gave.append({})
    return task.rubric.holds(world, said(task, gave))


def _once(world: World, step: Step, gave: list[dict[str, Any]]) -> dict[str, Any]:
    args = {name: resolved(value, gave) for name, value in step.args.items()}
    if not step.pick:
        return world.call(step.tool, args)
    pick = {name: resolved(value, gave) for name, value in step.pick.items()}
    rows: Any = world.call(step.tool, {**args, "page": 1})["rows"]
    return next((r for r in rows if all(r[name] == v for name, v in pick.items())), {})


DIMENSIONS: dict[str, tuple[float, ...]] = {
    "chain": (1, 3, 6),
    "branching": (0.0, 1.0),
    "distractors": (0.5, 4.0),
    "lookups": (0.0, 1.0),
    "hidden": (0, 2),
    "noise": (0, 3),
}


def dimensions(tasks: int) -> dict[str, Any]:
    """The weak solver's rate by each dimension, the others fixed."""
    base: dict[str, float] = {
        "chain": 3, "branching": 0.4, "distractors": 1.0, "lookups": 0.9, "hidden": 0, "noise": 0,
    }  # fmt: skip
    rates: dict[str, Any] = {}
    names = builtin_names()
    for dimension, values in DIMENSIONS.items():
        for value in values:
            solved: list[bool] = []
            for i in range(tasks):
                domain = domain_called(names[i % len(names)])
                made = make_part(Order(domain.source, 9, i, 1, {**base, dimension: value})).tasks[0]
                task = GeneratedTask.of_json(domain, made)
                world = task.world(domain)
                solved.append(weak_solver(task, world, random.Random(i)))
                world.close()
            rates[f"{dimension} {value:g}"] = round(fmean(solved), 3)
    return rates


def memory(pack: Pack, worlds: int) -> dict[str, Any]:
    """KiB of one open world with its database, after a call."""
    ids = sampled(pack, 64, 5)
    tasks = [pack.task(id) for id in ids]
    held: list[World] = []
    before = psutil.Process().memory_full_info().pss
    for i in range(worlds):
        task = tasks[i % len(tasks)]
        world = task.world(pack.domains[task.domain])
        world.call("ask_user", {"about": "anything"})
        held.append(world)
    after = psutil.Process().memory_full_info().pss
    for world in held:
        world.close()
    each = (after - before) / worlds
    return {"KiB each": round(each / 1024, 1), "GiB for 32,000": round(each * 32000 / 2**30, 2)}


def shapes(pack: Pack) -> dict[str, Any]:
    """How many domains and chains differ."""
    seen: dict[str, set[str]] = defaultdict(set)
    for one in pack.entries():
        seen[one.domain].add(one.structure)
    return {
        "structures of domains": len({structure(domain) for domain in pack.domains.values()}),
        "shapes of chains": sum(map(len, seen.values())),
        "by domain": {name: len(some) for name, some in seen.items()},
    }


def main() -> int:
    """Measure, print, compare with the targets."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--dimension-tasks", type=int, default=100)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = asked.pack or Path(folder) / "pack"
        if not out.exists():
            generate(
                out, chosen_domains("20"), tasks=asked.tasks, seed=asked.seed, fixed={},
                processes=asked.processes,
            )  # fmt: skip
        pack = Pack(out)
        sheet = json.loads((out / "verification.json").read_text(encoding="utf-8"))
        steps: Counter[str] = Counter()
        for one in sheet["domains"].values():
            steps.update(one["steps"])
        found: dict[str, Any] = {
            "seconds": sheet["seconds"],
            "tasks": sheet["tasks"],
            "tries": sheet["tries"],
            "hard": sum(one["hard"] for one in sheet["domains"].values()),
            "tools": sum(one["tools"] for one in sheet["domains"].values()),
            "acts never asked": sum(
                len(one["acts_never_asked"]) for one in sheet["domains"].values()
            ),
            "steps": dict(sorted(steps.items(), key=lambda item: int(item[0]))),
            "shapes": shapes(pack),
        }
        parts = {
            "again": lambda: again(pack, 200),
            "expert": lambda: expert(pack, 1000),
            "random": lambda: random_policy(pack, 1000),
            "mutations": lambda: mutations(pack, 200),
            "memory": lambda: memory(pack, 1000),
            "weak solver": lambda: dimensions(asked.dimension_tasks),
        }
        for name, part in parts.items():
            begun = time.monotonic()
            found[name] = part()
            print(
                f"{name} ({time.monotonic() - begun:.0f} s): {json.dumps(found[name])}", flush=True
            )
        print(json.dumps(found, indent=1))
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    met = (
        not found["again"]["not accepted again"]
        and found["expert"]["solved"] == 1
        and found["random"]["solved"] <= 0.02
        and found["mutations"]["rejected"] >= 0.99
    )
    print("targets met" if met else "a target is missed")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
