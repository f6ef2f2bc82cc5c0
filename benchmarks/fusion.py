"""Fusion of three experts of one cold start: held-out reward by method, of distillation and of each expert.

    python benchmarks/fusion.py [--steps 30] [--seeds 3] [--cold 100] [--distil 10] [--rate R] [--json FILE]

One cold start (`benchmarks/domains.py`), one expert per domain by RL in `--steps` steps, then one policy of
the three: by each method of `dorado model fuse`, and by distillation from the three in `--distil` steps, from
the cold start and from the fused policy. A row is the mean over the domains of the held-out reward, its
seeds, and the share of the experts' own, each on its domain.
"""

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from distill import STUDENT_RATE
from domains import DOMAINS, begin, cold_start, heldout, mean_heldout, save, train

from trainer.fusion.config import FusionConfig
from trainer.fusion.fuse import Fusion

METHODS: dict[str, dict[str, Any]] = {
    "average": {"method": "average"},
    "average, router of the start": {"method": "task", "router": "base"},
    "task, scale 3 (sum)": {"method": "task", "scale": 3.0},
    "dare 0.5": {"method": "dare"},
    "dare 0.5, scale 3": {"method": "dare", "scale": 3.0},
    "ties 0.2": {"method": "ties"},
    "ties 0.2, scale 2": {"method": "ties", "scale": 2.0},
    "ties 1, scale 2": {"method": "ties", "density": 1.0, "scale": 2.0},
    "sce": {"method": "sce"},
    "sce, normalised": {"method": "sce", "normalise": True},
    "sce, normalised, dropout 0.5": {"method": "sce", "normalise": True, "drop": 0.5},
    "sce, normalised, scale 2": {"method": "sce", "normalise": True, "scale": 2.0},
}
DISTILLED_FROM = "sce, normalised"


def one_seed(
    seed: int, steps: int, cold: int, distil: int, rate: float, root: Path
) -> dict[str, float]:
    """The held-out rewards of one seed, by what they are of."""
    start = root / "start"
    cold_start(start, root / "scratch", cold, seed)
    found = {"cold start": mean_heldout(begin(start))}
    for domain in DOMAINS:
        expert = begin(start)
        train(expert, [domain], steps, seed)
        found[f"expert {domain}, its domain"] = heldout(expert, domain)
        found[f"expert {domain}, all"] = mean_heldout(expert)
        save(expert, root / domain, start)
    experts = [root / domain for domain in DOMAINS]
    found["experts, each its domain"] = statistics.fmean(
        found[f"expert {domain}, its domain"] for domain in DOMAINS
    )
    for number, (name, values) in enumerate(METHODS.items()):
        base = None if values["method"] == "average" else start
        out = root / f"fused-{number}"
        Fusion(experts, base, FusionConfig(**values)).write(out, lambda done, total: None)
        found[name] = mean_heldout(begin(out))
    higher: dict[str, Any] = {"optim": {"lr": rate}}
    begins = {"cold start": start, "fused": root / f"fused-{list(METHODS).index(DISTILLED_FROM)}"}
    for name, folder in begins.items():
        teachers = {domain: str(root / domain) for domain in DOMAINS}
        student = begin(folder, advantage="distill", distill={"teachers": teachers}, **higher)
        train(student, DOMAINS, distil, seed + 100)
        found[f"distilled {distil} steps from the {name}"] = mean_heldout(student)
    for name, settings in {"": {}, ", the student's rate": higher}.items():
        mixed = begin(start, **settings)
        train(mixed, DOMAINS, steps, seed)
        found[f"RL on all domains, {steps} steps{name}"] = mean_heldout(mixed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Three experts as one policy, by each method.")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cold", type=int, default=100)
    parser.add_argument("--distil", type=int, default=10)
    parser.add_argument("--rate", type=float, default=STUDENT_RATE, help="the student's")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: dict[str, list[float]] = defaultdict(list)
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as name:
            found = one_seed(seed, given.steps, given.cold, given.distil, given.rate, Path(name))
        for row, value in found.items():
            rows[row].append(value)
        print(json.dumps({row: round(value, 3) for row, value in found.items()}), flush=True)
    own = statistics.fmean(rows["experts, each its domain"])
    print("| policy | mean | seeds | of the experts' own |\n|---|---|---|---|")
    for row, values in rows.items():
        seeds = ", ".join(f"{value:.2f}" for value in values)
        mean = statistics.fmean(values)
        print(f"| {row} | {mean:.3f} | {seeds} | {mean / own:.0%} |")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
