"""Is `dorado plan --here` right? Its prediction beside what three runs with its settings do.

    python benchmarks/plan_here.py [CONFIG] [--steps N] [--seconds N] [--json FILE]

Makes the policy that CONFIG (by default the quickstart) starts from, and measures the machine for it. Then it
trains N steps (14), without evaluations and with every group trained on,

    own       with the settings as they are
    proposed  with those that the plan proposes, or where these are the same, with its second best
    other     with the best of another number of engines than `proposed` has

Measured are trajectories per second from the end of the fourth step to the end of the last one.

Target: each prediction within 15 % of the run. Exits with 1 where one is missed. About ten minutes for the
quickstart on two cores; the figures are of use on an idle machine only.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from commands import metrics
from rich.console import Console
from rich.table import Table

from rl.config import ModelConfig, load_config
from rl.config_file import find_config
from rl.record.run_folder import dump_toml

TARGET = 0.15
# The first steps wait for episodes that begin with them, and load kernels.
FIRST_STEPS = 4
SETTINGS = (
    "engine.count",
    "engine.threads",
    "engine.max_num_seqs",
    "engine.compile",
    "learner.micro_batch_tokens",
    "learner.threads",
)


def dorado(*arguments: str) -> str:
    """Run a command of dorado; what it says goes to standard error. Returns its standard output."""
    command = [sys.executable, "-m", "rl", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        sys.exit(
            f"{' '.join(command)} ended with exit code {process.returncode}:\n{output[-2000:]}"
        )
    return output


def chosen(plan: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings to try, by name. The plan's own are None where they were not measured."""
    own, best = plan["as_it_is"], plan["proposed"]

    def differs(row: dict[str, Any], other: dict[str, Any] | None) -> bool:
        return other is None or any(row[key] != other[key] for key in SETTINGS)

    proposed = next((row for row in (best, *plan["candidates"]) if differs(row, own)), None)
    if own is not None:
        yield "own", own
    if proposed is not None:
        yield "proposed", proposed
    engines = {row["engine.count"] for row in (own, proposed) if row is not None}
    seen = [row for row in (own, proposed) if row is not None]
    others = [row for row in plan["candidates"] if all(differs(row, one) for one in seen)]
    others.sort(key=lambda row: row["engine.count"] in engines)
    if others:
        yield "other", others[0]


def written(config: Path, folder: Path) -> Path:
    """Write the configuration of all runs: a policy that is made, no evaluation, every group trained on."""
    settings = load_config(config)
    changed: dict[str, Any] = {
        "runs_dir": str(folder),
        "eval": settings.eval.model_copy(update={"before": False, "after": False}),
        "batch": settings.batch.model_copy(update={"filter_zero_variance": False}),
        "wandb": settings.wandb.model_copy(update={"enabled": False}),
    }
    if settings.sft is not None:
        policy = folder / "policy"
        dorado("sft", str(config), f"--out={policy}")
        changed |= {"model": ModelConfig(path=str(policy)), "sft": None}
    file = folder / "plan_here.toml"
    file.write_text(dump_toml(settings.model_copy(update=changed)), encoding="utf-8")
    return file


def measured(config: Path, name: str, row: dict[str, Any], steps: int) -> float:
    """Trajectories per second of a run with these settings."""
    values = [f"--{key}={json.dumps(row[key])}" for key in SETTINGS]
    dorado("train", str(config), *values, f"--steps={steps}", f"--name={name}")
    lines = metrics(config.parent / name)
    ends = [line["time"] for line in lines if "time/total_seconds" in line]
    first = min(FIRST_STEPS, len(ends) - 1)
    batch = load_config(config).batch
    count = (len(ends) - first) * batch.groups * batch.group_size
    return count / (ends[-1] - ends[first - 1])


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Predicted and measured trajectories per second."""
    shown = Table("settings", *SETTINGS, "predicted", "measured", "off by")
    for row in rows:
        cells = (str(row[key]) for key in SETTINGS)
        rates = (f"{row['predicted']:.1f}", f"{row['measured']:.1f}", f"{row['off']:+.0%}")
        shown.add_row(row["name"], *cells, *rates)
    return shown


def main() -> int:
    """Measure, run, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", nargs="?", default="quickstart.toml", type=Path)
    parser.add_argument("--steps", type=int, default=14, help="of each run")
    parser.add_argument("--seconds", type=float, default=90, help="of `dorado plan --here`")
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs ends with us
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dorado-plan-here-") as folder:
        config = written(find_config(asked.config), Path(folder))
        plan = json.loads(
            dorado("plan", str(config), "--here", "--json", f"--seconds={asked.seconds}")
        )
        for name, row in chosen(plan):
            rate, predicted = measured(config, name, row, asked.steps), row["trajectories_per_s"]
            found = {"name": name, "predicted": predicted, "measured": rate}
            rows.append(row | found | {"off": predicted / rate - 1})
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(*plan["measured"], *plan["doubts"], sep="\n")
    console.print(table(rows))
    if asked.json:
        asked.json.write_text(json.dumps({"plan": plan, "runs": rows}, indent=1), encoding="utf-8")
    missed = [row["name"] for row in rows if abs(row["off"]) > TARGET]
    return 1 if missed or len(rows) < 3 else 0


if __name__ == "__main__":
    sys.exit(main())
