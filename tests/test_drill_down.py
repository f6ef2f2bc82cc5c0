"""From a point, a bar or an alert to the trajectories behind it."""

import json

import pytest
from fakes import scored, turn
from recorded_run import RecordedRun
from test_run_data import make_run, step_metrics

from rl.dashboard.alerts import alerts
from rl.dashboard.drill_down import behind_bar, drill_down, in_time
from rl.dashboard.learning import HELD_OUT
from rl.dashboard.pages.overview import behind
from rl.dashboard.run_data import RunData
from rl.dashboard.trajectory_filter import TrajectoryFilter
from rl.dashboard.trajectory_index import hits

ROW = {"tasks": 4, "faults": 0, "env": {"orders": {"pass_rate": 0.5, "low": 0.4, "high": 0.6}}}


def evaluation(version: int, when: str, rate: float = 0.5, lag: int = 0) -> dict:
    mean = {"pass_rate": rate, "low": rate - 0.1, "high": rate + 0.1}
    return {"step": version, "version": version, "lag": lag, "when": when, "mean": mean, **ROW}


def evaluated_run(tmp_path, rows: list[dict], metrics: list[dict]) -> RunData:
    run = make_run(tmp_path / "demo", metrics)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "evaluations.jsonl").write_text(text, encoding="utf-8")
    run.refresh()
    return run


def test_a_metric_leads_to_what_was_played_trained_on_or_evaluated(tmp_path):
    rows = [evaluation(0, "before"), evaluation(5, "step_5", lag=2)]
    run = evaluated_run(tmp_path, rows, [step_metrics(n) for n in (1, 2, 3)])
    assert drill_down(run, "loss/entropy", 2) == [("step", "2")]
    assert drill_down(run, "learn/orders/ess", 2) == [("step", "2"), ("env", "orders")]
    assert drill_down(run, "rollout/all/reward", 3) == [("during", "3")]
    assert drill_down(run, "reward/orders/solved", 3) == [("during", "3"), ("env", "orders")]
    assert drill_down(run, "eval/orders/pass_rate", 7) == [
        ("split", "heldout-step_5"),
        ("env", "orders"),
    ]
    assert behind(run, HELD_OUT, 0.4) == [("split", "heldout-before")]
    assert behind(run, HELD_OUT, 4.0) == [("split", "heldout-step_5")]
    assert behind(run, "reward", 2.2) == [("during", "2")]
    assert behind(run, "entropy", 2.2) == [], "it has no entropy"


@pytest.mark.parametrize(
    ("lane", "text", "query"),
    [
        ("learner", "learner: step 2\n5 s, from 0:00:00", [("step", "2")]),
        ("run", "run: evaluation step_4\n1 s", [("split", "heldout-step_4")]),
        ("engine-0", "engine-0: version 3\n1 s", [("version", "3")]),
        ("engine-0", "engine-0: load version 4\n1 s", [("version", "4")]),
        ("calculator", "calculator: 2 groups in flight", [("during", "2"), ("env", "calculator")]),
        ("learner", "learner: wait for batch\n1 s", [("during", "2")]),
    ],
)
def test_a_bar_leads_to_its_trajectories(tmp_path, lane, text, query):
    run = make_run(tmp_path / "demo", [step_metrics(n) for n in (1, 2, 3)])
    run.refresh()
    assert behind_bar(run, lane, text, 101.5) == query


def test_the_trajectories_of_a_step_are_those_that_it_trained_on(tmp_path):
    recorded = RecordedRun(tmp_path)
    recorded.group("a", [scored("a.0", turns=[turn()]), scored("a.1", turns=[turn()])])
    recorded.learned("a.1", 3, [0.5, 0.5], [-0.1, -0.2], [0.1, 0.2])
    run = RunData(recorded.path, tmp_path / "cache")
    asked = in_time(run, TrajectoryFilter(step=3))
    assert [one.id for one in hits(run.folder, asked)] == ["a.1"]
    recorded.close()


def test_without_a_word_on_training_a_steps_trajectories_are_those_of_its_time(tmp_path):
    recorded = RecordedRun(tmp_path)
    recorded.rewards("a", 0.0, 1.0)
    recorded.execute("update trajectories set start = 100.2, seconds = 0.5 where id = 'a.0'")
    recorded.execute("update trajectories set start = 100.2, seconds = 1.5 where id = 'a.1'")
    lines = [json.dumps(step_metrics(n)) + "\n" for n in (1, 2)]
    (recorded.path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    run = RunData(recorded.path, tmp_path / "cache")
    for asked, ids in (
        (TrajectoryFilter(during=1), ["a.0"]),
        (TrajectoryFilter(during=2), ["a.1"]),
        (TrajectoryFilter(step=2), ["a.1"]),
        (TrajectoryFilter(during=9), []),
    ):
        assert [one.id for one in hits(run.folder, in_time(run, asked))] == ids
    recorded.close()


def test_every_alert_on_a_metric_has_its_step_and_a_page(tmp_path):
    bad = {
        "rollout/calculator/faults": 32.0,
        "rollout/calculator/truncated": 0.9,
        "env/calculator/breaker": 1.0,
        "parity/mean_abs_dlogp": 0.5,
        "loss/loss": float("nan"),
    }
    run = make_run(tmp_path / "demo", [step_metrics(n, **bad) for n in range(1, 12)])
    run.refresh()
    found = [one for one in alerts(run) if one.page == "trajectories"]
    assert len(found) == 5
    assert {one.step for one in found} == {11}
    queries = [dict(one.query) for one in found]
    assert {"env": "calculator", "fault": "with"} in queries
    assert {"during": "11", "env": "calculator", "fault": "with"} in queries
    assert {"step": "11"} in queries
