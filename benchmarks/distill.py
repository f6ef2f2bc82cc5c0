"""On-policy distillation: how many steps a student needs for what its teachers learnt by RL, in one process.

    python benchmarks/distill.py [--steps 40] [--seeds 3] [--cold 100] [--rate 2e-3] [--json FILE]

One cold start (`benchmarks/domains.py`). RL makes a teacher of one domain in `--steps` steps. A student
begins as the teacher did and is trained by the advantage `distill` alone, with as many answers a step, until
its held-out reward is 95 % of the teacher's. Then the same with two teachers, one per environment, of which
the student takes both. Both sides are evaluated after every second step; steps are the first at which a side
is there. A student has a denser signal than a reward, so its learning rate may be higher (`--rate`); RL at
that rate stands beside it.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from domains import batch_of, begin, cold_start, heldout, mean_heldout, save

from trainer.learner import Learner

SHARE, EVERY = 0.95, 2
STUDENT_RATE = 2e-3


def trained(learner: Learner, domains: list[str], goal: float, most: int, seed: int) -> list[float]:
    """Train until the mean held-out reward is at the goal; its value after every EVERY steps."""
    draw = random.Random(f"train/{seed}")
    torch.manual_seed(seed)
    curve: list[float] = []
    for step in range(1, most + 1):
        learner.step(batch_of(learner, domains, draw)[0])
        if step % EVERY == 0:
            curve.append(mean_heldout(learner, domains))
            if curve[-1] >= goal:
                break
    return curve


def steps_to(goal: float, curve: Sequence[float]) -> int:
    """The step at which a curve is first at the goal; 0: never."""
    return next((EVERY * n for n, value in enumerate(curve, 1) if value >= goal), 0)


def one_seed(seed: int, steps: int, cold: int, rate: float, root: Path) -> dict[str, object]:
    """The figures of one seed."""
    start = root / "start"
    cold_start(start, root / "scratch", cold, seed)
    first = begin(start)
    before = {domain: heldout(first, domain) for domain in ("one", "two")}
    teachers: dict[str, float] = {}
    needed: dict[str, int] = {}
    faster: dict[str, int] = {}
    higher = {"optim": {"lr": rate}}
    for domain in ("one", "two"):
        learner = begin(start)
        curve = trained(learner, [domain], 2.0, steps, seed)
        teachers[domain] = curve[-1]
        save(learner, root / domain, start)
        # How soon RL itself was at 95 % of where it ended.
        goal = SHARE * teachers[domain]
        needed[domain] = steps_to(goal, curve)
        faster[domain] = steps_to(
            goal, trained(begin(start, **higher), [domain], goal, steps, seed)
        )
    single = begin(start, advantage="distill", distill={"teacher": str(root / "one")}, **higher)
    goal = SHARE * teachers["one"]
    alone = trained(single, ["one"], goal, steps, seed + 100)
    folders = {domain: str(root / domain) for domain in ("one", "two")}
    student = begin(start, advantage="distill", distill={"teachers": folders}, **higher)
    both_goal = SHARE * statistics.fmean(teachers.values())
    both = trained(student, ["one", "two"], both_goal, steps, seed + 100)
    return {
        "before": before, "teachers": teachers, "rl_steps": steps, "rl_steps_to_95": needed,
        "rl_steps_to_95_at_the_students_rate": faster,
        "student_steps": steps_to(goal, alone), "student": alone[-1],
        "student_of_two_steps": steps_to(both_goal, both),
        "student_of_two": {domain: heldout(student, domain) for domain in folders},
        "mean_of_two": both[-1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Steps of a student against those of its teachers."
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cold", type=int, default=100)
    parser.add_argument("--rate", type=float, default=STUDENT_RATE, help="the student's")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: list[dict[str, object]] = []
    show: Callable[[object], None] = lambda row: print(json.dumps(row), flush=True)  # noqa: E731
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as name:
            found.append(one_seed(seed, given.steps, given.cold, given.rate, Path(name)))
            show(found[-1])
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
