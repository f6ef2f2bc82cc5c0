"""`dorado compare-modes`: the same run in every mode, one after the other, and one table.

Same tasks, seeds and number of learner steps; each mode is a run of its own with a folder of its own.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, get_args

from pydantic import TypeAdapter, ValidationError
from rich.table import Table
from typing_extensions import TypedDict

from rl.config import Mode, RunConfig
from rl.config_file import ConfigError
from rl.record.status import first_fault
from rl.simulator.predict import run_as_simulation
from rl.simulator.report import simulate

MODES: tuple[Mode, ...] = get_args(Mode)


class CompareError(Exception):
    """A mode's run failed; the message is one sentence."""


class Evaluations(TypedDict):
    """Held-out pass rates by environment, before and after training."""

    after: NotRequired[dict[str, float]]


class Parity(TypedDict):
    """Mean difference of log-probs between engine and learner; None where nothing could be compared."""

    mean_abs_dlogp: float | None


class RunSummary(TypedDict):
    """The part of summary.json that modes are compared by."""

    training_s: float
    steps: int
    trajectories: int
    tokens: int
    eval: Evaluations
    rollout_only_share: float | None
    staleness: dict[str, int]
    parity: Parity
    fleet: dict[str, int | float]


class Prediction(TypedDict):
    """The simulator's figures for a mode; None where the trace is of no use."""

    predicted_wall_s: NotRequired[float | None]
    predicted_rollout_only_share: NotRequired[float]


class ModeRow(Prediction):
    """One mode's figures. wall_s: of the learner's steps, start-up and evaluations left out."""

    wall_s: float
    steps: int
    trajectories: int
    tokens: int
    eval_after: dict[str, float]
    rollout_only_share: float | None
    staleness: dict[str, int]
    parity: float | None
    fleet: dict[str, int | float]


class Comparison(TypedDict):
    """All modes of one configuration."""

    name: str
    modes: dict[Mode, ModeRow]


SUMMARY = TypeAdapter(RunSummary)


def compare(
    config: RunConfig, path: Path, overrides: Sequence[str], modes: Sequence[Mode]
) -> Comparison:
    """Run the modes; their output goes to standard error. Raises CompareError.

    Beside each mode stands the simulator's prediction of it, given the trace of the first one.
    """
    rows: dict[Mode, ModeRow] = {}
    for mode in modes:
        name = f"{config.name}-{mode}"
        command = [sys.executable, "-m", "rl", "train", str(path), *overrides]
        command += ["--mode", mode, "--name", name]
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if code:
            raise CompareError(f"mode {mode}: the run {name} ended with exit code {code}")
        rows[mode] = row(_read_summary(Path(config.runs_dir) / name / "summary.json"))
    # From the first mode's costs and what it played, for all: the others are predictions.
    trace = str(Path(config.runs_dir) / f"{config.name}-{modes[0]}")
    predicted = _predicted(config, trace, modes)
    for mode, values in rows.items():
        values |= predicted.get(mode, Prediction(predicted_wall_s=None))
    return {"name": config.name, "modes": rows}


def _read_summary(file: Path) -> RunSummary:
    try:
        return SUMMARY.validate_python(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise CompareError(f"{file} cannot be read: {first_fault(error)}") from None


def _predicted(config: RunConfig, trace: str, modes: Sequence[Mode]) -> Mapping[Mode, Prediction]:
    """The simulator's figures by mode; none where the trace is of no use, which costs no row."""
    try:
        whole = run_as_simulation(config, trace)
        chosen = {mode: whole.modes[mode] for mode in modes}
        figures = simulate(whole.model_copy(update={"modes": chosen}))["modes"]
    except ConfigError as error:
        print(f"no prediction: {error}", file=sys.stderr)
        return {}
    return {
        mode: Prediction(
            predicted_wall_s=round(60 * figures[mode]["step_min"] * config.steps, 1),
            predicted_rollout_only_share=figures[mode]["rollout_only_share"],
        )
        for mode in modes
    }


def row(summary: RunSummary) -> ModeRow:
    """The figures of one mode, without its prediction."""
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


def table(result: Comparison) -> Table:
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
        predicted, share = values.get("predicted_wall_s"), values["rollout_only_share"]
        shown.add_row(
            mode,
            f"{values['wall_s']:.1f}",
            "-" if predicted is None else f"{predicted:.1f}",
            str(values["steps"]),
            "-" if share is None else f"{share:.0%}",
            rates,
            gaps,
        )
    return shown
