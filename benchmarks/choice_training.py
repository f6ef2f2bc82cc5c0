"""Real runs with and without a choice of tasks: held-out success, and groups without variance.

    python benchmarks/choice_training.py [--steps 40] [--seeds 3] [--forecast NAME] [--folder DIR]

A tiny new policy has a cold start on calculations of one to three steps (`mixed_calculator.py`), and is then
trained by `dorado train` on a pool of 240 of them, with a vLLM engine on the CPU: as the tasks come, and
chosen by each forecast. Every run of a seed begins with the same policy. Printed for each, means over seeds:
the held-out pass rate by step, the first step at the target, the share of groups without variance of the
tasks that were chosen and of those that came by chance. A folder keeps what is done, and the same command
goes on.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from commands import dorado, metrics

FORECASTS = ("none", "beta", "flgp")
TARGET = 0.6
START = """
name = "start"
seed = {seed}
runs_dir = "{folder}"
model = {{ init = {{ family = "qwen3_moe" }} }}
episode = {{ max_turns = 5, max_tokens = 256 }}
learner = {{ micro_batch_tokens = 4096 }}

[sft]
demonstrations = 1200
steps = 320
batch_size = 32
slip = 0.2
optim = {{ lr = 2e-3, warmup_steps = 20, decay_steps = 340 }}

[[env]]
id = "{file}:MixedCalculator"
"""
RUN = """
name = "{name}"
seed = {seed}
steps = {steps}
runs_dir = "{folder}"
model = {{ path = "{folder}/start-{seed}" }}
wandb = {{ enabled = false }}
batch = {{ groups = 12, group_size = 8 }}
episode = {{ max_turns = 5, max_completion_tokens = 32, max_tokens = 256, max_seconds = 120 }}
engine = {{ count = 1, dtype = "float32", max_model_len = 320, max_num_seqs = 128 }}
rollout = {{ max_in_flight_groups = 24 }}
eval = {{ tasks = 200, every = 10 }}

[[env]]
id = "{file}:MixedCalculator"
config = {{ pool = 240 }}
{choice}

[learner]
micro_batch_tokens = 4096
threads = 1
loss = {{ kind = "longcat", max_completion_tokens = 96 }}
optim = {{ lr = 2.5e-4, warmup_steps = 3 }}
"""


def figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run that has ended."""
    curve = {
        int(one["step"]): one["eval/mean_pass_rate"]
        for one in lines
        if "eval/mean_pass_rate" in one
    }
    at = [step for step, rate in sorted(curve.items()) if rate >= TARGET]
    found: dict[str, Any] = {"curve": curve, "at_target": at[0] if at else None}
    for one in lines:
        for key, value in one.items():
            if key.startswith("forecast/"):
                found[key.split("/", 2)[2]] = value
    return found


def start(folder: Path, seed: int) -> None:
    """The policy that a seed's runs begin with, where it is not there."""
    made, config = folder / f"start-{seed}", folder / f"start-{seed}.toml"
    if made.exists():
        return
    file = Path(__file__).with_name("mixed_calculator.py")
    config.write_text(START.format(seed=seed, folder=folder, file=file), encoding="utf-8")
    dorado("sft", str(config), "--out", str(made))


def run(folder: Path, forecast: str, seed: int, steps: int) -> dict[str, Any]:
    """A run, which is made where it has not ended."""
    name = f"{forecast}-{seed}"
    file = Path(__file__).with_name("mixed_calculator.py")
    choice = "" if forecast == "none" else f'choice = {{ forecast = "{forecast}" }}'
    text = RUN.format(name=name, seed=seed, steps=steps, folder=folder, file=file, choice=choice)
    config = folder / f"{name}.toml"
    config.write_text(text, encoding="utf-8")
    if not (folder / name / "summary.json").exists():
        dorado("train", str(config))
    return figures(metrics(folder / name))


def main() -> None:
    """Make what is not there, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--forecast", choices=FORECASTS, action="append")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="dorado-choice-") as temporary:
        folder = (asked.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(asked.seeds):
            start(folder, seed)
            for forecast in asked.forecast or FORECASTS:
                rows.setdefault(forecast, []).append(run(folder, forecast, seed, asked.steps))
    for forecast, found in rows.items():
        steps = sorted(set.intersection(*(set(one["curve"]) for one in found)))
        print(
            f"{forecast}: held-out by step",
            *(f"{s}: {fmean(one['curve'][s] for one in found):.2f}" for s in steps),
        )
        print(f"  first step at {TARGET}:", *(one["at_target"] or "-" for one in found))
        for key in ("chance/zero_variance", "value/zero_variance", "log_loss", "log_loss_base"):
            if values := [one[key] for one in found if key in one]:
                print(f"  {key}: {fmean(values):.3f}", *(f"{value:.3f}" for value in values))
    if asked.json:
        asked.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
