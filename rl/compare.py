"""`dorado compare-modes`: the same run in every mode, one after the other, and one table.

Same tasks, seeds and number of learner steps; each mode is a run of its own with a folder of its own.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from rl.config import Mode, RunConfig
from rl.config_file import ConfigError
from rl.simulator.predict import run_as_simulation
from rl.simulator.report import simulate

MODES: tuple[Mode, ...] = get_args(Mode)


class CompareError(Exception):
    """A mode's run failed; the message is one sentence."""


def compare(
    config: RunConfig, path: Path, overrides: Sequence[str], modes: Sequence[Mode]
) -> dict[str, Any]:
    """Run the modes; their output goes to standard error. Raises CompareError.

    Beside each mode stands what the simulator says of it, given the trace of the first one.
    """
    rows: dict[str, Any] = {}
    for mode in modes:
        name = f"{config.name}-{mode}"
        command = [sys.executable, "-m", "rl", "train", str(path), *overrides]
        command += ["--mode", mode, "--name", name]
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if code:
            raise CompareError(f"mode {mode}: the run {name} ended with exit code {code}")
        summary = json.loads((Path(config.runs_dir) / name / "summary.json").read_text())
        rows[mode] = row(summary)
    # From the first mode's costs and what it played, for all: the others are predictions.
    trace = str(Path(config.runs_dir) / f"{config.name}-{modes[0]}")
    predicted = _predicted(config, trace, modes)
    for mode, values in rows.items():
        values |= predicted.get(mode, {"predicted_wall_s": None})
    return {"name": config.name, "modes": rows}


def _predicted(config: RunConfig, trace: str, modes: Sequence[Mode]) -> dict[str, Any]:
    """What the simulator says of the modes; nothing where the trace is of no use, which costs no row."""
    try:
        whole = run_as_simulation(config, trace)
        chosen = {mode: whole.modes[mode] for mode in modes}
        figures = simulate(whole.model_copy(update={"modes": chosen}))["modes"]
    except ConfigError as error:
        print(f"no prediction: {error}", file=sys.stderr)
        return {}
    return {
        mode: {
            "predicted_wall_s": round(60 * values["step_min"] * config.steps, 1),
            "predicted_rollout_only_share": values["rollout_only_share"],
        }
        for mode, values in figures.items()
    }


def row(summary: dict[str, Any]) -> dict[str, Any]:
    """What a summary says of a mode. wall_s: of the learner's steps, start-up and evaluations left out."""
    return {
        "wall_s": summary["training_s"],
        "steps": summary["steps"],
        "trajectories": summary["trajectories"],
        "tokens": summary["tokens"],
        "eval_after": summary["eval"].get("after", {}),
        "rollout_only_share": summary["rollout_only_share"],
        "staleness": summary["staleness"],
        "parity": summary["parity"]["mean_abs_dlogp"],
        "fleet": summary["fleet"],
    }


def table(result: dict[str, Any]) -> Table:
    """The modes side by side."""
    shown = Table(title=f"{result['name']}: modes", title_justify="left")
    for column in (
        "mode",
        "wall s",
        "predicted",
        "steps",
        "rollout only",
        "held-out after",
        "staleness",
    ):
        shown.add_column(column, justify="left" if column == "mode" else "right")
    for mode, values in result["modes"].items():
        rates = " ".join(f"{env} {rate:.2f}" for env, rate in values["eval_after"].items())
        gaps = " ".join(f"{gap}:{count}" for gap, count in values["staleness"].items())
        shown.add_row(
            mode,
            f"{values['wall_s']:.1f}",
            "-" if values["predicted_wall_s"] is None else f"{values['predicted_wall_s']:.1f}",
            str(values["steps"]),
            f"{values['rollout_only_share']:.0%}",
            rates,
            gaps,
        )
    return shown
