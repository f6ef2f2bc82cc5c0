"""Does a policy that is trained on fifteen domains do better on five that it has never seen?

    python benchmarks/world_transfer.py [--seeds 3] [--steps 100] [--folder DIR] [--json FILE]

Two packs of verified tasks are made once (docs/worlds.md): of twenty domains sampled from the grammar, and of
five that come with Dorado. A new tiny policy imitates demonstrations of fifteen sampled domains for a while,
and for each seed `dorado train` goes on from there with their tasks. Before, beside and after that it plays,
the same for every seed: held-out tasks of the fifteen (*seen*), tasks of the five others (*unseen*: the same
words, put together otherwise), and tasks of the five that come with Dorado (*far*: other words, too). Prints
their curves, each seed's gain, and the mean gain with its standard error over seeds and over tasks; exits
with 1 unless the gain on unseen domains is beyond two standard errors over seeds. What DIR holds already is
not done again, and a run that was interrupted goes on. Other arguments are Dorado's settings.
"""

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from envs.generated.domain_file import builtin_names
from envs.generated.environment import heldout_domains
from rl.record.evaluations import read_evaluations
from rl.record.summary import read_summary

PARTS = ("seen", "unseen", "far")
SAMPLED = [f"sampled:{number}:24" for number in range(20)]
SEEN = [f"sampled_{number}" for number in range(15)]
UNSEEN = [f"sampled_{number}" for number in range(15, 20)]
PACKS = {"pack": (SAMPLED, 7000), "far": (sorted(heldout_domains(builtin_names())), 2000)}
TASK = {
    "chain": 1, "lookups": 0, "hidden": 0, "noise": 0, "question": 0, "distractors": 0.25, "tools": 5,
}  # fmt: skip
COLD_START = """\
[model.init]
family = "qwen3_moe"

[sft]
demonstrations = 4000
steps = 1000
batch_size = 16
ranks = 2
slip = 0.25
optim = { lr = 3e-3, warmup_steps = 20, decay_steps = 1050 }
"""
CONFIG = """\
name = "transfer"
mode = "in_flight"
runs_dir = "runs"

{policy}
[[env]]
id = "generated"
name = "seen"
config = {{ pack = "pack", domains = {seen} }}

[[eval.env]]
id = "generated"
name = "unseen"
config = {{ pack = "pack", domains = {unseen} }}

[[eval.env]]
id = "generated"
name = "far"
config = {{ pack = "far" }}

[eval]
tasks = 200
every = 20

[batch]
groups = 14
group_size = 8

[episode]
max_turns = 6
max_completion_tokens = 96
max_tokens = 1024
max_seconds = 300

[engine]
count = 1
start_seconds = 600
dtype = "float32"
max_model_len = 1024
max_num_seqs = 128

[learner]
micro_batch_tokens = 6144
threads = 1
loss = {{ kind = "longcat", max_completion_tokens = 128 }}
optim = {{ lr = 2.5e-4, warmup_steps = 3, decay_steps = 100 }}

[rollout]
max_in_flight_groups = 28

[timeouts]
start_seconds = 600

[wandb]
enabled = false
"""


@dataclass(frozen=True)
class Curve:
    """Pass rates of one seed by step, and by task before and after training."""

    seed: int
    rates: dict[str, dict[int, float]]
    tasks: dict[str, dict[str, tuple[float, float]]]

    def gain(self, part: str) -> float:
        """Return what training has added to the pass rate."""
        steps = self.rates[part]
        return steps[max(steps)] - steps[min(steps)]


def prepare(folder: Path) -> Path:
    """Write the packs, the policy and the config, where they are not there yet; returns the config's path."""
    for name, (domains, tasks) in PACKS.items():
        command = [sys.executable, "-m", "rl", "env", "generate", str(folder / name), "--seed", "1"]
        command += ["--domains", ",".join(domains), "--tasks", str(tasks), "--processes", "2"]
        if not (folder / name).exists():
            subprocess.run([*command, "--task", json.dumps(TASK)], check=True, stdout=sys.stderr)
    domains = {"seen": json.dumps(SEEN), "unseen": json.dumps(UNSEEN)}
    policy, cold_start = folder / "policy", folder / "cold_start.toml"
    if not policy.exists():
        cold_start.write_text(CONFIG.format(policy=COLD_START, **domains), encoding="utf-8")
        command = [sys.executable, "-m", "rl", "sft", str(cold_start), "--out", str(policy)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    config = folder / "transfer.toml"
    model = f"[model]\npath = {json.dumps(str(policy))}\n"
    config.write_text(CONFIG.format(policy=model, **domains), encoding="utf-8")
    return config


def trained(config: Path, seed: int, steps: int, settings: Sequence[str]) -> Curve:
    """Train one seed, or go on with it, and read its curves. Raises CalledProcessError."""
    runs = config.parent / "runs"
    run = runs / f"seed-{seed}"
    command = [sys.executable, "-m", "rl", "train", str(config), "--name", run.name]
    command += ["--seed", str(seed), "--steps", str(steps), "--runs_dir", str(runs), *settings]
    if "after" not in (read_summary(run).eval or {}):
        if any((run / "checkpoints").glob("step_*")):
            command += ["--resume", str(run)]
        else:
            shutil.rmtree(run, ignore_errors=True)
        subprocess.run(command, check=True, stdout=sys.stderr)
    rates: dict[str, dict[int, float]] = {part: {} for part in PARTS}
    for row in read_evaluations(run):
        for part in PARTS:
            rates[part][row.step] = row.env[part].pass_rate
    return Curve(seed, rates, {part: by_task(run, part) for part in PARTS})


def by_task(run: Path, part: str) -> dict[str, tuple[float, float]]:
    """A task's pass rate before and after training."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    with sqlite3.connect(run / "trajectories.sqlite") as db:
        rows = db.execute(
            "select task, split, reward from trajectories where env = ? and reward is not null "
            "and split in ('heldout-before', 'heldout-after')",
            (part,),
        )
        for task, split, reward in rows:
            found[task][split].append(reward >= 1)
    return {
        task: (fmean(two["heldout-before"]), fmean(two["heldout-after"]))
        for task, two in found.items()
        if len(two) == 2
    }


def error_of(values: Sequence[float]) -> float:
    """The standard error of a mean; nan of a single value."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else float("nan")


def gain_by_task(curves: Sequence[Curve], part: str) -> list[float]:
    """The gain of each task, its mean over seeds."""
    gains: dict[str, list[float]] = defaultdict(list)
    for curve in curves:
        for task, (before, after) in curve.tasks[part].items():
            gains[task].append(after - before)
    return [fmean(some) for some in gains.values()]


def show(curves: Sequence[Curve]) -> None:
    """Print the curves and the gains."""
    for part in PARTS:
        steps = sorted(set.intersection(*(set(curve.rates[part]) for curve in curves)))
        print(
            f"\n{part} domains, pass rate by step\n\n| seed |",
            " | ".join(map(str, steps)),
            "| gain |",
        )
        print("|---" * (len(steps) + 2) + "|")
        for curve in curves:
            rates = (f"{curve.rates[part][step]:.3f}" for step in steps)
            print(f"| {curve.seed} |", " | ".join(rates), f"| {curve.gain(part):+.3f} |")
        means = (f"{fmean(curve.rates[part][step] for curve in curves):.3f}" for step in steps)
        gains = [curve.gain(part) for curve in curves]
        tasks = gain_by_task(curves, part)
        print("| mean |", " | ".join(means), f"| {fmean(gains):+.3f} |")
        print(
            f"\ngain {fmean(gains):+.3f}, standard error {error_of(gains):.3f} over {len(gains)} seeds, "
            f"{error_of(tasks):.3f} over {len(tasks)} tasks"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="keep pack and runs here, and go on with them")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given, settings = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        config = prepare(folder)
        curves: list[Curve] = []
        for seed in range(given.seeds):
            curves.append(trained(config, seed, given.steps, settings))
            if given.json:
                text = json.dumps([asdict(curve) for curve in curves], indent=1)
                given.json.write_text(text + "\n", encoding="utf-8")
    show(curves)
    gains = [curve.gain("unseen") for curve in curves]
    beyond = len(gains) > 1 and fmean(gains) > 2 * error_of(gains)
    sys.exit(not beyond)


if __name__ == "__main__":
    main()
