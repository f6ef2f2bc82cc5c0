"""Heavy thinking with a trained aggregator: K answers and one more, against a vote that costs as many tokens.

    python benchmarks/aggregator.py [--seeds 3] [--answers 8] [--steps 20] [--folder DIR] [--json FILE]

For each seed: a cold start on `calculator` that slips, a run without learning that records K answers to each
training task, a cold start on `aggregate` and `calculator` (an opening with K answers is new to the policy),
`dorado train` on both, and `dorado eval --think K` of the second cold start and of what was trained.
`--rival` trains on `calculator` alone for as many steps, for what training gives without an aggregator. A
folder keeps what is done. Some ten minutes a seed on two cores.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from commands import dorado

WAYS = ("one answer", "vote", "vote, as many tokens", "heavy thinking")
COMMON = """
name = "{name}"
seed = {seed}
runs_dir = "{folder}"
wandb = {{ enabled = false }}
batch = {{ groups = 8, group_size = 8{filter} }}
engine = {{ count = 1, dtype = "float32", max_model_len = 640, max_num_seqs = 128 }}
rollout = {{ max_in_flight_groups = 16 }}
eval = {{ before = false, after = false, tasks = 100 }}
steps = {steps}

[episode]
max_turns = 4
max_completion_tokens = 32
max_tokens = 640
max_seconds = 60

[learner]
micro_batch_tokens = 4096
loss = {{ kind = "longcat", max_completion_tokens = 64 }}
optim = {{ lr = {rate}, warmup_steps = 3 }}
"""
START = """
[model.init]
family = "qwen3_moe"

[sft]
demonstrations = 600
steps = 260
batch_size = 32
slip = {slip}
optim = { lr = 2e-3, warmup_steps = 20, decay_steps = 280 }
"""
MIXED = """
[sft]
demonstrations = 500
steps = 180
batch_size = 32
slip = {slip}
optim = { lr = 1e-3, warmup_steps = 10, decay_steps = 200 }
"""
CALCULATOR = """
[[env]]
id = "calculator"
"""
AGGREGATE = """
[[env]]
id = "aggregate"
config = {{ of = "calculator", record = "{folder}/thinkers-{seed}", answers = {answers} }}
"""


class Seed:
    """The runs of one seed, each made where it is not there."""

    def __init__(self, folder: Path, seed: int, asked: argparse.Namespace) -> None:
        self.folder, self.seed, self.asked = folder, seed, asked
        self.start = folder / f"start-{seed}"
        self.mixed = folder / f"mixed-{seed}"

    def config(self, name: str, more: str, steps: int, rate: float, *, filtered: bool) -> Path:
        """Write a configuration."""
        text = COMMON.format(
            name=f"{name}-{self.seed}",
            seed=self.seed,
            folder=self.folder,
            steps=steps,
            rate=rate,
            filter="" if filtered else ", filter_zero_variance = false",
        )
        file = self.folder / f"{name}-{self.seed}.toml"
        file.write_text(text + more, encoding="utf-8")
        return file

    def made(self) -> None:
        """Make the cold start, the record, and the trained policies."""
        slip = str(self.asked.slip)
        if not (self.start / "config.json").exists():
            start = START.replace("{slip}", slip)
            config = self.config("start", start + CALCULATOR, 1, 1e-4, filtered=False)
            dorado("sft", str(config), f"--out={self.start}")
        model = f'[model]\npath = "{self.start}"\n'
        self.run("thinkers", model + CALCULATOR, self.asked.record_steps, 1e-12, filtered=False)
        tables = CALCULATOR + AGGREGATE.format(
            folder=self.folder, seed=self.seed, answers=self.asked.answers
        )
        if not (self.mixed / "config.json").exists():
            mixed = model + MIXED.replace("{slip}", slip) + tables
            config = self.config("mixed", mixed, 1, 1e-4, filtered=False)
            dorado("sft", str(config), f"--out={self.mixed}")
        model = f'[model]\npath = "{self.mixed}"\n'
        self.run("aggregator", model + tables, self.asked.steps, 2.5e-4)
        if self.asked.rival:
            self.run("rival", model + CALCULATOR, self.asked.steps, 2.5e-4)

    def run(self, name: str, more: str, steps: int, rate: float, *, filtered: bool = True) -> None:
        """Train, where the run has not ended."""
        if not (self.folder / f"{name}-{self.seed}" / "summary.json").exists():
            config = self.config(name, more, steps, rate, filtered=filtered)
            dorado("train", str(config))

    def thought(self, name: str) -> dict[str, Any]:
        """Evaluate a policy by `dorado eval --think`, and return its ways by name."""
        out = self.folder / f"think-{name}-{self.seed}"
        if not (out / "summary.json").exists():
            policy = self.mixed if name == "mixed" else self.folder / f"{name}-{self.seed}"
            config = self.config(
                "heldout", f'[model]\npath = "{self.start}"\n{CALCULATOR}', 1, 1e-4, filtered=True
            )
            dorado(
                "eval",
                str(policy),
                f"--think={self.asked.answers}",
                f"--out={out}",
                f"--config={config}",
            )
        found = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return found["think"]


def main() -> None:
    """Make what is not there, and print the table."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--answers", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--record-steps", type=int, default=20)
    arguments.add_argument("--slip", type=float, default=0.4)
    arguments.add_argument("--rival", action="store_true")
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--json", type=Path)
    asked = arguments.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="dorado-aggregator-") as temporary:
        folder = (asked.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(asked.seeds):
            seed = Seed(folder, number, asked)
            seed.made()
            for name in ("mixed", "aggregator", *(("rival",) if asked.rival else ())):
                found.setdefault(name, []).append(seed.thought(name))
    print("| policy | seed | " + " | ".join(WAYS) + " | gain over that vote |")
    print("|---" * (len(WAYS) + 3) + "|")
    for name, seeds in found.items():
        for number, envs in enumerate(seeds):
            [one] = envs.values()
            rates = " | ".join(f"{one['ways'][way]['rate']:.3f}" for way in WAYS)
            gain = "{rate:+.3f} ({low:+.3f} to {high:+.3f})".format(**one["gain"])
            print(f"| {name} | {number} | {rates} | {gain} |")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
