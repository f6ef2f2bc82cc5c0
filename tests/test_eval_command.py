"""`dorado eval`: which policy, which tasks, and what is written and shown."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import scored
from test_best_checkpoint import evaluated
from test_env_eval import stirrer
from test_resume import EMPTY, checkpoint, settings
from typer.testing import CliRunner

from rl.cli import app
from rl.config_file import ConfigError
from rl.env_tools.eval.heldout import find_target, plays_of, result
from rl.record.best_checkpoint import link_best
from rl.record.position import write_position
from rl.record.run_folder import RunFolder
from rollout.trajectory_file import read_trajectory

pytestmark = pytest.mark.process

CONFIG = """
name = "demo"
[model.init]
[eval]
tasks = 3
samples_per_task = 2
[[env]]
id = "kitchen:Kitchen"
name = "kitchen"
[[eval.env]]
id = "kitchen:Kitchen"
name = "other"
noise = { level = 2 }
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(CONFIG, encoding="utf-8")
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 2 and 4, of which 2 is the best."""
    folder = RunFolder(settings(tmp_path))
    folder.close()
    for step in (2, 4):
        checkpoint(folder.path, step, write_position(10, EMPTY))
    evaluated(folder.path, v2=0.75, v4=0.5)
    link_best(folder.path)
    return folder.path


def evaluate(tmp_path: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments, "--out", str(tmp_path / "out")])


def test_a_served_model_plays_the_sets_of_a_config_as_often_as_it_says(serve, config, tmp_path):
    url = serve(stirrer).url
    done = evaluate(tmp_path, url, "--config", str(config), "--eval.tasks", "2")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert set(found["env"]) == {"kitchen", "other"}
    one = found["env"]["kitchen"]
    assert (one["tasks"], one["episodes"], one["pass_rate"]) == (2, 4, 1.0)
    assert one["pass_at"] == {"1": 1.0, "2": 1.0}
    assert (found["version"], found["model"], found["episodes"]) == (None, url, 8)
    text = (tmp_path / "out" / "trajectories" / "eval.jsonl").read_text(encoding="utf-8")
    played = [read_trajectory(line).trajectory for line in text.splitlines()]
    assert {t.task.noise for t in played if t.env == "other"} == {2}
    assert {t.task.noise for t in played if t.env == "kitchen"} == {0}
    assert len({t.id for t in played}) == 8 and len({t.group for t in played}) == 4
    assert "kitchen" in done.output and "pass@2" in done.output


def test_one_object_is_printed_where_json_is_asked_for(serve, config, tmp_path):
    arguments = (serve(stirrer).url, "--config", str(config), "--json")
    done = evaluate(tmp_path, *arguments)
    assert json.loads(done.stdout)["mean"]["pass_rate"] == 1.0


def test_a_server_that_is_not_there_is_one_sentence(config, tmp_path):
    done = evaluate(tmp_path, "http://127.0.0.1:1", "--config", str(config))
    assert done.exit_code == 1
    assert "error: http://127.0.0.1:1/v1/models" in done.output


@pytest.mark.parametrize(
    ("what", "step"),
    [("demo", 4), ("{run}", 4), ("{run}/", 4), ("demo@2", 2), ("{run}@2", 2), ("{run}@best", 2)],
)
def test_a_runs_checkpoint_is_the_last_or_that_of_a_step(run, monkeypatch, what, step):
    monkeypatch.setattr("rl.env_tools.eval.heldout.RUNS", run.parent)
    target = find_target(what.format(run=run), None)
    assert (target.version, target.name) == (step, f"demo-step_{step}")
    assert target.checkpoint == run / "checkpoints" / f"step_{step}"
    assert target.config.batch.groups == 3, "the settings are the run's"


def test_a_runs_best_checkpoint_and_other_settings(run, config):
    target = find_target(str(run), config, ["--eval.tasks", "7"], best=True)
    assert target.version == 2
    assert target.config.eval.tasks == 7
    assert [table.label for table in target.config.all_envs] == ["kitchen", "other"]


@pytest.mark.parametrize(
    ("what", "best", "sentence"),
    [
        ("{run}@9", False, "has no checkpoint of step 9; there are 2, 4"),
        ("{run}@2", True, "--best goes with a run, and .*@2 names a step"),
        ("{run}/nothing", False, "--config: say whose held-out sets to play: .*nothing is no run"),
        ("{run}@²", False, "is no run folder"),
        ("x" * 5000, False, "is no run folder"),
        ("a\0b", False, "is no run folder"),
        ("http://x", True, "--best goes with a run: http://x is no run folder"),
    ],
)
def test_a_policy_that_cannot_be_found_is_one_sentence(run, what, best, sentence):
    with pytest.raises(ConfigError, match=sentence):
        find_target(what.format(run=run), None, best=best)


def test_a_model_folder_that_is_not_there_is_refused_and_nothing_is_written(config, tmp_path):
    done = evaluate(tmp_path, str(tmp_path / "none"), "--config", str(config))
    assert done.exit_code == 2 and "does not exist" in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_the_tasks_are_those_of_the_runs_own_evaluations(run):
    config = settings(run.parent, eval={"tasks": 3, "samples_per_task": 2})
    plays = plays_of(config)
    assert len(plays) == 2 * 3 * 2 and len({play.id for play in plays}) == 12
    again = plays_of(config)
    assert [play.task for play in plays] == [play.task for play in again]
    assert {play.task.split for play in plays} == {"heldout"}


def test_the_result_names_the_checkpoints_version(run):
    plays = plays_of(settings(run.parent, eval={"tasks": 1}))[:1]
    one = scored(plays[0].id, 1.0)
    named = replace(one.trajectory, group=plays[0].group, env="calculator")
    found = result(plays, [replace(one, trajectory=named)], 1, 40)
    assert (found.version, found.last_version, found.lag) == (40, 40, 0)
    assert found.pass_rates == {"calculator": 1.0}
