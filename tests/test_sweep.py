"""`dorado plan`: the points of a sweep, the frontier, and what it refuses."""

import json
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from test_simulator import SETTINGS
from typer.testing import CliRunner

from rl.cli import app
from rl.simulator.config import SimConfig
from rl.simulator.sweep import Outcome, Setting, frontier, settings

POINT = Setting(live=2, rollout_share=0.5, over_dispatch=1.5, concurrency=8)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_frontier_is_what_no_other_outcome_beats(values):
    outcomes = [Outcome(POINT, step, 1.0, gap, 0.0) for gap, step in values]
    for one in frontier(outcomes):
        beaten = any(
            other.staleness <= one.staleness and other.step_min <= one.step_min
            for other in outcomes
            if (other.staleness, other.step_min) != (one.staleness, one.step_min)
        )
        if one.frontier:
            assert not beaten
    assert any(one.frontier for one in frontier(outcomes))


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(SETTINGS), encoding="utf-8")
    return path


def test_what_the_file_has_is_always_among_what_is_swept_by_itself():
    config = SimConfig.model_validate(SETTINGS)
    points = settings(config, [], [], [], [])
    assert {(p.live, p.over_dispatch) for p in points} >= {(3, 1.5), (1, 2.0), (4, 3.0)}
    assert {(p.rollout_share, p.concurrency) for p in points} == {(0.5, 256)}
    assert len(settings(config, [2], [0.25], [1.5], [8])) == 1


def test_the_command_plays_every_combination(config):
    command = ["plan", str(config), "--live", "1,2", "--over-dispatch", "1.5,2", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    points = json.loads(result.stdout)["points"]
    assert {(p["live"], p["over_dispatch"]) for p in points} == {(1, 1.5), (1, 2), (2, 1.5), (2, 2)}
    assert all(p["step_min"] > 0 and p["rollout_share"] == 0.5 for p in points)
    shown = CliRunner().invoke(app, ["plan", str(config), "--live", "2", "--over-dispatch", "2"])
    assert "frontier" in shown.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--live", "0"], "live (K) is 0"),
        (["--live", "two"], "--live: 'two' has to be numbers"),
        (["--over-dispatch", "0.5"], "over_dispatch (0.5) is below one batch"),
        (["--share", "1.5"], "rollout_share"),
    ],
)
def test_a_point_that_cannot_be_is_one_sentence(config, options, message):
    result = CliRunner().invoke(app, ["plan", str(config), *options])
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
