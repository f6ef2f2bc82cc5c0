"""The overview as data: the evaluation curve, how a run was begun, what is left; and its metrics' guide."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from test_drill_down import evaluated_run, evaluation
from test_run_data import STATUS, make_run, step_metrics

from rl.dashboard.demo import unpack
from rl.dashboard.learning import HELD_OUT, STABILITY
from rl.dashboard.metric_guide import SECTIONS, about_key, by_section, section_of
from rl.dashboard.overview import (
    command,
    commit,
    figures,
    held_out_rows,
    long,
    overview_charts,
    seconds_left,
)
from rl.dashboard.run_data import RunData
from rl.record.evaluations import best_of, read_evaluations
from rl.record.status import STATUS as READ_STATUS
from rl.record.status import describe

ROWS = [
    evaluation(0, "before", 0.2),
    evaluation(2, "step_2", 0.6, lag=1),
    evaluation(4, "after", 0.6),
]


def test_the_curve_has_intervals_and_the_earlier_of_two_equal_ones_is_the_best(tmp_path):
    run = evaluated_run(tmp_path, ROWS, [step_metrics(n) for n in (1, 2, 3)])
    options = overview_charts(run)[HELD_OUT]
    line, whiskers = options["series"]
    assert line["data"] == [[0, 0.5], [2, 0.5], [4, 0.5]], "the one environment's"
    assert whiskers["data"] == [
        [0.0, pytest.approx(0.1), pytest.approx(0.3)],
        [2.0, 0.5, pytest.approx(0.7)],
        [4.0, 0.5, pytest.approx(0.7)],
    ]
    assert line["markPoint"]["data"][0]["coord"] == [2, 0.6]
    assert [one["name"] for one in options["legend"]["data"]] == ["orders"]
    found = {figure.name: (figure.value, figure.remark) for figure in figures(run)}
    assert found["held-out"] == ("0.60", "0.50 to 0.70; best 0.60 at version 2")
    assert held_out_rows(run) == [
        {
            "env": "orders",
            "before": "0.50 (0.40 to 0.60)",
            "after": "0.50 (0.40 to 0.60)",
            "best": "0.50 at 0",
            "gain": "+0.00",
        }
    ]


def test_a_mean_over_environments_is_the_line_that_stands_out(tmp_path):
    both = {"orders": {"pass_rate": 0.4}, "units": {"pass_rate": 0.8}}
    rows = [evaluation(n, f"step_{n}", 0.6) | {"env": both} for n in (1, 2)]
    options = overview_charts(evaluated_run(tmp_path, rows, [step_metrics(1)]))[HELD_OUT]
    assert [one["name"] for one in options["series"]][:3] == ["mean", "orders", "units"]
    assert options["series"][0]["lineStyle"]["width"] > options["series"][1]["lineStyle"]["width"]


def test_a_line_of_evaluations_that_is_none_is_an_alert_and_the_others_are_read(tmp_path):
    run = evaluated_run(tmp_path, [{"step": "x"}, *ROWS, {"step": 9}], [step_metrics(1)])
    assert [row.version for row in run.evaluations] == [0, 2, 4]
    assert "evaluations.jsonl: 2 lines could not be read and are left out" in run.problems
    assert [row.version for row in read_evaluations(run.folder)] == [0, 2, 4]
    assert best_of([]) is None and read_evaluations(tmp_path) == []


def test_it_says_how_the_run_was_begun_and_what_is_left(tmp_path):
    run = make_run(tmp_path / "demo", [step_metrics(n) for n in (1, 2, 3)], status=STATUS)
    start = {"time": 90.0, "command": ["/x/bin/dorado", "train", "my config.toml"], "changed": True}
    lines = [{"command": 5, "commit": ["x"]}, start | {"commit": "f810bf7c0ffee0"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.folder / "starts.jsonl").write_text(text, encoding="utf-8")
    run.refresh()
    assert command(run) == "dorado train 'my config.toml'"
    assert commit(run) == "f810bf7c0ffe, with changes"
    assert seconds_left(run) == 1.0
    assert {f.name: f.remark for f in figures(run)}["step"] == "of 4, about 1 s left"
    assert (long(90), long(3600), long(7200)) == ("90 s", "60 min", "2.0 h")


def test_a_chart_of_the_panel_has_the_lines_that_are_there(tmp_path):
    run = make_run(tmp_path / "demo", [step_metrics(1, **{"loss/entropy": 0.5})])
    run.refresh()
    drawn = overview_charts(run)
    assert [one["name"] for one in drawn["entropy"]["series"]] == ["entropy"]
    assert all(drawn[name]["series"] == [] for name in STABILITY if name != "entropy")


def test_the_status_has_the_evaluations_with_their_intervals_and_the_best(tmp_path):
    rows = [evaluation(n, f"step_{n}", 0.9 if n == 1 else 0.5) for n in range(8)]
    run = evaluated_run(tmp_path, rows, [step_metrics(1)])
    status = READ_STATUS.validate_python(STATUS)
    console = Console(width=140, record=True)
    console.print(describe(status, live=True, evaluations=run.evaluations))
    said = console.export_text()
    assert "0.90 (0.80 to 1.00)" in said and "0.50 (0.40 to 0.60)" in said
    first = next(line for line in said.splitlines() if "0.90" in line)
    assert first.split()[1] == "1" and "best" in first
    assert said.count("(0.40 to 0.60)") == 11, "the last five, and the best, with its environment"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> RunData:
    folder: Path = tmp_path_factory.mktemp("demo")
    unpack(folder)
    run = RunData(folder / "quickstart", folder / "cache")
    run.refresh()
    return run


def test_every_metric_of_a_run_has_a_named_section(recorded):
    assert [key for key in recorded.series if section_of(key).title == "Others"] == []
    sections = by_section(sorted(recorded.series))
    assert sum(map(len, sections.values())) == len(recorded.series)
    assert list(sections) == [one for one in SECTIONS if one in sections], "in their order"


@pytest.mark.parametrize(
    "key",
    [
        "eval/orders/pass_rate",
        "eval/mean_pass_rate",
        "learn/all/ratio_max",
        "learn/all/kl_engine",
        "rollout/all/completion_tokens_p90",
        "rollout/orders/zero_variance",
        "reward/orders/format",
        "staleness/max",
    ],
)
def test_a_metric_that_one_steers_by_has_a_line(key):
    assert about_key(key) and section_of(key).title != "Others"
