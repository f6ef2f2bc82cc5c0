"""What `compare-modes` reads from the runs' summaries, and what it says when one fails."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rl.cli import app
from rl.compare import CompareError, compare, row, table
from rl.config import load_config

SUMMARY = {
    "training_s": 12.5,
    "steps": 3,
    "trajectories": 40,
    "tokens": 900,
    "eval": {"after": {"calculator": 0.5}},
    "rollout_only_share": 0.25,
    "staleness": {"0": 10, "1": 14},
    "parity": {"mean_abs_dlogp": 1e-7},
    "fleet": {"weight_moves": 2},
}
ROOT = Path(__file__).parent.parent


def test_a_row_has_the_keys_that_are_compared():
    wanted = {"wall_s", "steps", "trajectories", "tokens", "eval_after", "rollout_only_share"}
    assert wanted | {"staleness"} <= set(row(SUMMARY))
    assert row(SUMMARY)["wall_s"] == 12.5


def test_the_table_shows_the_modes_side_by_side():
    shown = table({"name": "demo", "modes": {"sync": row(SUMMARY), "dora": row(SUMMARY)}})
    console = Console(width=120, record=True)
    console.print(shown)
    text = console.export_text()
    assert "sync" in text and "dora" in text and "calculator 0.50" in text and "0:10 1:14" in text


def test_each_mode_is_a_run_of_its_own_and_a_failing_one_is_named(monkeypatch):
    started: list[list[str]] = []

    def run(command, **_):
        started.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    path = ROOT / "configs/slow_tools.toml"
    with pytest.raises(
        CompareError, match="mode sync: the run slow_tools-sync ended with exit code 1"
    ):
        compare(load_config(path), path, ["--steps", "2"], ["sync", "dora"])
    assert started[0][-6:] == ["--steps", "2", "--mode", "sync", "--name", "slow_tools-sync"]


def test_an_unknown_mode_is_one_sentence():
    path = str(ROOT / "configs/slow_tools.toml")
    result = CliRunner().invoke(app, ["compare-modes", path, "--modes", "sync,dorra"])
    assert result.exit_code == 2
    assert (
        "--modes: sync,dorra has to name some of sync, one_step, in_flight, dora" in result.stderr
    )
