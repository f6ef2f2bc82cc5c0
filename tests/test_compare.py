"""What `compare-modes` reads from the runs' summaries, and what it says when one fails."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import write_run
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
    values = row(SUMMARY) | {"predicted_wall_s": 11.5}
    shown = table({"name": "demo", "modes": {"sync": values, "dora": values}})
    console = Console(width=140, record=True)
    console.print(shown)
    text = console.export_text()
    assert "12.5" in text and "11.5" in text
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


def test_a_prediction_that_fails_costs_no_row(monkeypatch, tmp_path, capsys):
    def run(command, **_):
        folder = write_run(tmp_path / command[-1], groups=6, group_size=4, learner_seconds=2.0)
        (folder / "summary.json").write_text(json.dumps(SUMMARY), encoding="utf-8")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    path = ROOT / "configs/slow_tools.toml"
    config = load_config(path, ["--runs_dir", str(tmp_path)])
    result = compare(config, path, [], ["dora"])
    assert result["modes"]["dora"]["wall_s"] == 12.5
    assert result["modes"]["dora"]["predicted_wall_s"] is None
    assert "no prediction: trace" in capsys.readouterr().err
    Console().print(table(result))


def test_an_unknown_mode_is_one_sentence():
    path = str(ROOT / "configs/slow_tools.toml")
    result = CliRunner().invoke(app, ["compare-modes", path, "--modes", "sync,dorra"])
    assert result.exit_code == 2
    assert (
        "--modes: sync,dorra has to name some of sync, one_step, in_flight, dora" in result.stderr
    )


def test_every_mode_is_predicted_from_the_trace_of_the_first(monkeypatch, tmp_path):
    def run(command, **_):
        name = command[-1]
        folder = write_run(tmp_path / name, groups=6, group_size=8, learner_seconds=2.0)
        (folder / "summary.json").write_text(json.dumps(SUMMARY), encoding="utf-8")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    path = ROOT / "configs/slow_tools.toml"
    config = load_config(path, ["--steps", "3", "--runs_dir", str(tmp_path)])
    modes = compare(config, path, [], ["sync", "dora"])["modes"]
    assert modes["sync"]["predicted_wall_s"] > 3 * 2.0, "learner and rollouts one after the other"
    assert modes["dora"]["predicted_wall_s"] < modes["sync"]["predicted_wall_s"]
