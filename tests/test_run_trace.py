"""The trace of a finished run: what it played comes back, its costs are found again, others are refused."""

import sqlite3
from itertools import islice
from pathlib import Path

import pytest
from fakes import write_run
from typer.testing import CliRunner

from rl.cli import app
from rl.config import load_config
from rl.config_file import ConfigError
from rl.simulator.predict import run_as_simulation
from rl.simulator.report import simulate
from rl.simulator.run_trace import PlayedTurn, Trace, _waits, read_trace
from rl.simulator.trajectory_plan import GroupPlan, Plan

SLOW_TOOLS = Path(__file__).parent.parent / "configs/slow_tools.toml"


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run", groups=5, group_size=8, learner_seconds=0.5)


def test_what_was_played_comes_back_group_by_group(run):
    trace = read_trace(run)
    assert len(trace.groups) == 5 and trace.group_size == 8
    first = trace.groups[0].members[0]
    assert first == Plan(prompt_tokens=30, turns=(10, 5), tool_seconds=(0.4,), tool_tokens=6)
    assert [g.filtered for g in trace.groups] == [False, False, False, False, True]
    assert trace.learner_seconds() == pytest.approx(0.5 + 0.01)
    assert trace.load_seconds() == pytest.approx(0.07)


def test_the_groups_are_repeated_in_another_order_when_they_have_all_been_played():
    plan = Plan(1, (1,), (), 0)
    groups = tuple(GroupPlan((plan,) * size, filtered=False) for size in (1, 2, 3, 4, 5))
    played = list(islice(Trace(groups, (), ()).plans(seed=0), 15))
    assert played[:5] == list(groups)
    assert sorted(len(g.members) for g in played[5:10]) == [1, 2, 3, 4, 5]
    assert played[5:] != [*groups, *groups]


def test_the_costs_of_an_engine_are_found_again():
    fixed, beside, reading = 0.012, 0.0005, 1 / 4000
    turns: list[PlayedTurn] = []
    for wave, (together, written, read) in enumerate(
        [(1, 20, 40), (4, 30, 10), (16, 25, 100), (8, 60, 20), (2, 5, 300)]
    ):
        start = 100.0 * wave
        seconds = written * (fixed + beside * together) + together * read * reading
        turns += [PlayedTurn("e", start, start + seconds, read, written)] * together
    found = Trace((), tuple(turns), ()).decode_costs()
    assert found == pytest.approx((fixed, beside, reading), rel=1e-6)


def test_a_cost_is_never_negative():
    turns = [PlayedTurn("e", 10.0 * i, 10.0 * i + 5 - i, 10, 10 + i) for i in range(4)]
    assert min(Trace((), tuple(turns), ()).decode_costs()) >= 0


def test_a_run_is_simulated_from_its_trace(run):
    config = load_config(SLOW_TOOLS, ["--steps", "4"])
    settings = run_as_simulation(config, str(run))
    assert settings.cost.train_fixed_seconds == pytest.approx(0.51)
    assert settings.modes["dora"].live == config.live_versions
    modes = simulate(settings)["modes"]
    assert set(modes) == {"sync", "one_step", "in_flight", "dora"}
    assert all(m["ledger"]["remainder"] == 0 for m in modes.values())


def test_a_trace_of_another_schema_is_refused(run):
    with sqlite3.connect(run / "trajectories.sqlite") as database:
        database.execute("pragma user_version = 7")
    result = CliRunner().invoke(app, ["simulate", str(SLOW_TOOLS), "--trace", str(run)])
    assert result.exit_code == 2
    assert "its trajectories are of schema 7, this version reads schema 1" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "trajectories.sqlite").unlink(), "this is no run folder"),
        (
            lambda run: (run / "metrics.jsonl").write_text("", encoding="utf-8"),
            "the run trained nothing",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text("{", encoding="utf-8"),
            "its records cannot be read",
        ),
        (
            lambda run: next(run.glob("trajectories/*")).write_text("[]\n" * 99, encoding="utf-8"),
            "cannot be read",
        ),
        (lambda run: next(run.glob("trajectories/*")).unlink(), "cannot be read"),
    ],
)
def test_a_folder_that_is_no_trace_is_refused_in_one_sentence(run, spoil, message):
    spoil(run)
    with pytest.raises(ConfigError, match=message) as caught:
        read_trace(run)
    assert "\n" not in str(caught.value) and str(run) in str(caught.value)


def test_groups_of_another_size_are_refused(run):
    config = load_config(SLOW_TOOLS, ["--batch.group_size", "4"])
    with pytest.raises(ConfigError, match=r"groups are of 8 trajectories, .*group_size is 4"):
        simulate(run_as_simulation(config, str(run)))


def test_a_run_needs_a_trace_to_be_simulated():
    result = CliRunner().invoke(app, ["simulate", str(SLOW_TOOLS)])
    assert result.exit_code == 2 and "--trace RUN gives" in result.stderr


def test_a_turn_waits_for_the_environment_and_its_user_together():
    opening, asking = ["reset", "user", "reset"], ["generate", "reply", "user", "reply"]
    names = [*opening, *asking, "generate", "tool", "generate", "reply", "score"]
    phases = [{"name": name, "seconds": 2.0**index} for index, name in enumerate(names)]
    assert _waits(phases) == [16.0 + 32.0 + 64.0, 256.0, 1024.0]
