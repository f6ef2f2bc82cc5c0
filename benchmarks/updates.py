"""Several updates per batch in mode `sync`, against one update there and in the modes that do not wait.

    python benchmarks/updates.py [--only "sync, 1 update"] [--config FILE] [--runs FOLDER] [--json FILE]

Each setup is a whole run of the quickstart's environments from one cold start, which is made once: the same
tasks, seed, loss (`grpo`), learning rate and number of steps; two engines, since `dora` needs one for each
of its two versions. Prints one table. CPU seconds are of all processes of a run between its first and its
last step; wall seconds say something on an idle machine only. Other arguments are Dorado's settings.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from commands import metrics
from peer.cpu_seconds import CpuSeconds

ROOT = Path(__file__).parent.parent
SEVERAL = ["--learner.updates.mini_batches", "4", "--learner.updates.epochs", "2"]
SEVERAL += ["--learner.updates.max_kl", "0.05"]
SETUPS = {
    "sync, 1 update": ["--mode", "sync"],
    "sync, 4 mini-batches, 2 epochs": ["--mode", "sync", *SEVERAL],
    "in_flight, 1 update": ["--mode", "in_flight"],
    "dora, 1 update": ["--mode", "dora"],
    "in_flight, 4 mini-batches, 2 epochs": ["--mode", "in_flight", *SEVERAL],
}
COMMON = ["--steps", "16", "--batch.groups", "10", "--engine.count", "2"]
COMMON += ["--learner.loss.kind", "grpo", "--wandb.enabled", "false"]


class Row(NamedTuple):
    """One run's figures. clipped: mean share of the tokens without a gradient. tasks: held out, of each
    environment."""

    steps: int
    updates: int
    trajectories: int
    wall: float
    cpu: float
    clipped: float
    tasks: int
    before: dict[str, float]
    after: dict[str, float]


def measured(setup: str, config: Path, runs: Path, settings: list[str]) -> Row:
    """Run one setup, and read what it wrote. Raises CalledProcessError."""
    name = "updates-" + setup.replace(", ", "-").replace(" ", "_")
    # The first one evaluates the policy that all of them start from.
    before = str(setup == next(iter(SETUPS))).lower()
    command = [sys.executable, "-m", "rl", "train", str(config), *COMMON, *SETUPS[setup]]
    command += ["--eval.before", before, *settings, "--name", name, "--runs_dir", str(runs)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    seconds = CpuSeconds(process.pid)
    code = process.wait()
    seconds.stop()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return row_of(runs / name, seconds)


def row_of(run: Path, seconds: CpuSeconds) -> Row:
    """The figures in a run folder; seconds: those of its processes."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    steps = [one for one in metrics(run) if "loss/loss" in one]  # the others are evaluations
    end = steps[-1]["time"]
    return Row(
        steps=summary["steps"],
        updates=round(sum(one.get("update/made", 1.0) for one in steps)),
        trajectories=summary["trajectories"],
        wall=summary["training_s"],
        cpu=sum(seconds.between(end - summary["training_s"], end).values()),
        clipped=fmean(one["learn/all/clipped"] for one in steps),
        tasks=config["eval"]["tasks"],
        before=summary["eval"].get("before", {}),
        after=summary["eval"].get("after", {}),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Several updates per batch against one.")
    parser.add_argument("--only", choices=tuple(SETUPS), action="append")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.toml")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given, settings = parser.parse_known_args()
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for setup in given.only or SETUPS:
            rows[setup] = measured(setup, given.config, given.runs or Path(temporary), settings)
            if given.json:
                shown = {name: row._asdict() for name, row in rows.items()}
                given.json.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    environments = list(next(iter(rows.values())).after)
    columns = [
        "setup",
        "steps",
        "updates",
        "trajectories",
        "wall s",
        "CPU s",
        "clipped",
        "held-out",
    ]
    print(f"| {' | '.join([*columns, *environments])} |")
    print("|---" * (len(columns) + len(environments)) + "|")
    for row in rows.values():
        if row.before:
            print(f"| before{' |' * 7} {_rates(row.before)} |")
    for setup, row in rows.items():
        print(
            f"| {setup} | {row.steps} | {row.updates} | {row.trajectories} | {row.wall:.0f} | "
            f"{row.cpu:.0f} | {row.clipped:.1%} | {_rates(row.after)} |"
        )
    print(
        f"standard error of a mean held-out rate: at most {0.5 / sqrt(100 * len(environments)):.3f}"
    )


def _rates(rates: dict[str, float]) -> str:
    """The mean, then each environment's rate."""
    return " | ".join(f"{rate:.2f}" for rate in (fmean(rates.values()), *rates.values()))


if __name__ == "__main__":
    main()
