"""The dashboard's view of a run folder: whatever a run leaves behind, whenever it is looked at."""

import json
import math
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.config_file import ConfigError
from rl.dashboard import charts, growing_lines, run_data
from rl.dashboard.alerts import alerts
from rl.dashboard.growing_lines import GrowingLines, parse
from rl.dashboard.overview import (
    figures,
    held_out_rows,
    overview_charts,
    time_split,
    trajectory_rows,
    written,
)
from rl.dashboard.run_data import RunData, RunsFolder
from rl.dashboard.series import Series, add, matching, thin
from rl.dashboard.trajectory_counts import trajectory_counts
from rl.record.run_folder import _INDEX

STATUS = {
    "time": 100.0,
    "stage": "training",
    "step": 2,
    "steps": 4,
    "learner": "waits for a batch",
    "window": [1, 2],
    "pending": None,
    "engines": {"engine-0": 2},
    "asleep": [],
    "in_flight": 8,
    "buffered": 0,
    "counts": {"calculator": {"tool": 8}},
    "waiting": [],
    "silent": [],
}


def step_metrics(step: int, **more: float) -> dict[str, float]:
    return {
        "step": step,
        "time": 100.0 + step,
        "rollout/all/reward": 0.5,
        "rollout/calculator/reward": 0.5,
        "rollout/calculator/trajectories": 64.0,
        "rollout/calculator/faults": 0.0,
        "time/total_seconds": 5.0,
        "time/wait_for_batch_seconds": 1.0,
        "time/learner_seconds": 3.0,
        **more,
    }


def make_run(folder: Path, metrics: list[dict] | None = None, **files: object) -> RunData:
    """A run folder with these lines of metrics; files: name without ending, and its content as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(
        'name = "demo"\nsteps = 4\nmode = "dora"\nmax_staleness = 2\n', encoding="utf-8"
    )
    if metrics is not None:
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(m) + "\n" for m in metrics), encoding="utf-8"
        )
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return RunData(folder)


def texts(run: RunData, now: float | None = None) -> list[str]:
    return [alert.text for alert in alerts(run, now)]


def everything(run: RunData) -> str:
    """All that the pages show of a run, as it is sent to a browser."""
    shown = [overview_charts(run), held_out_rows(run), trajectory_rows(run), texts(run)]
    return json.dumps([*shown, [vars(f) for f in figures(run)]], allow_nan=False)


@given(
    records=st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9))),
    cuts=st.lists(st.integers(min_value=0), max_size=6),
)
def test_a_file_cut_off_anywhere_gives_each_whole_record_once(tmp_path_factory, records, cuts):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    data = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)
    reader, seen = GrowingLines(path, parse), []
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        path.write_bytes(data[:cut]) if not path.exists() else _grow(path, data, cut)
        new, anew = reader.read()
        assert not anew
        seen += new
        assert seen == records[: data[:cut].count(b"\n")]
    assert reader.broken == 0


def _grow(path: Path, data: bytes, size: int) -> None:
    with path.open("ab") as file:
        file.write(data[path.stat().st_size : size])


@given(junk=st.binary(max_size=300), cut=st.integers(min_value=0, max_value=2000))
def test_whatever_the_files_hold_a_run_can_be_shown(tmp_path_factory, junk, cut):
    folder = tmp_path_factory.mktemp("junk") / "demo"
    make_run(folder, [step_metrics(1)], status=STATUS, summary={"status": "failed"})
    (folder / "events.jsonl").write_bytes(b'{"lane": "run", "name": "x", "start": 1, "end": 2}\n')
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:cut] + junk)
    (folder / "trajectories.sqlite").write_bytes(junk)
    run = RunData(folder)
    run.refresh()
    everything(run).encode()


@pytest.mark.parametrize(
    "value",
    ["1e999", "NaN", "-Infinity", "9" * 400, "9" * 5000, "true", '"0.5"', "null", "[" * 99_999],
)
def test_what_is_no_number_is_left_out_and_the_rest_stays(tmp_path, value):
    run = make_run(tmp_path / "demo", [step_metrics(1)])
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"step": 2, "rollout/all/reward": {value}}}\n')
        file.write(json.dumps(step_metrics(3)) + "\n")
    run.refresh()
    assert run.series["rollout/all/reward"].steps == [1, 3]
    assert all(math.isfinite(v) for v in run.series["rollout/all/reward"].values)


def test_a_file_that_another_run_began_anew_replaces_what_was_read(tmp_path, monkeypatch):
    monkeypatch.setattr(run_data, "FRESH_SECONDS", 0.0)
    run = make_run(tmp_path / "demo", [step_metrics(1), step_metrics(2)])
    run.refresh()
    os.rename(run.folder, tmp_path / "demo.1")
    make_run(tmp_path / "demo", [step_metrics(1), step_metrics(2), step_metrics(3, new=1.0)])
    run.refresh()
    assert run.series["time/total_seconds"].steps == [1, 2, 3]
    assert (run.series["new"].steps, run.step) == ([3], 3)


def test_a_line_without_end_is_given_up_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(growing_lines, "MAX_LINE", 100)
    monkeypatch.setattr(growing_lines, "CHUNK", 64)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 1000 + b'\n{"b": 2}\n')
    reader = GrowingLines(path, parse)
    assert reader.read() == ([{"a": 1}, {"b": 2}], False)
    assert reader.broken == 1


def test_broken_lines_are_counted_and_said(tmp_path):
    run = make_run(tmp_path / "demo", [step_metrics(1)])
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('no json\n[1]\n{"step": "x"}\n{"step": 2, "half')
    run.refresh()
    assert texts(run) == ["metrics.jsonl: 3 lines could not be read and are left out"]


def test_a_status_of_other_types_is_a_problem_and_no_error(tmp_path):
    row = {"id": "g0.0", "env": "calculator", "phase": "tool", "seconds": "long"}
    run = make_run(tmp_path / "demo", [step_metrics(1)], status=STATUS | {"waiting": [row]})
    run.refresh()
    assert run.status is None
    assert any(text.startswith("status.json cannot be read: waiting.0") for text in texts(run))


def test_a_half_surrogate_can_be_sent_to_a_browser(tmp_path):
    run = make_run(tmp_path / "demo", [step_metrics(1, **{"eval/\ud800/pass_rate": 0.5})])
    run.refresh()
    assert list(run.held_out) == ["?"]
    everything(run).encode()


@pytest.mark.parametrize("said", ["finished", "failed", "interrupted"])
def test_the_state_at_the_end_is_what_the_summary_says(tmp_path, said):
    run = make_run(tmp_path / "demo", [step_metrics(1)], summary={"status": said})
    run.refresh()
    assert run.state() == said


def test_without_a_summary_the_state_is_whether_it_still_writes(tmp_path):
    run = make_run(tmp_path / "demo")
    run.refresh()
    assert run.state() == "starting"
    run = make_run(tmp_path / "demo", [step_metrics(1)], status=STATUS)
    run.refresh()
    assert run.state(run.written + 29) == "running"
    assert run.state(run.written + 31) == "silent"
    assert "Nothing was written for 5 min" in texts(run, run.written + 300)[0]
    assert written(run, run.written + 7200) == "last written 2 h ago"


def test_held_out_rates_are_the_first_and_the_last(tmp_path):
    rates = ((0, 0.4, 0.2), (2, 0.5, 0.4), (4, 0.6, 0.8))
    metrics = [{"step": s, "eval/a/pass_rate": a, "eval/b/pass_rate": b} for s, a, b in rates]
    run = make_run(tmp_path / "demo", metrics)
    run.refresh()
    assert run.held_out == {"a": (0.4, 0.6), "b": (0.2, 0.8)}
    assert held_out_rows(run)[-1] == {
        "env": "mean",
        "before": "0.30",
        "after": "0.70",
        "gain": "+0.40",
    }


def test_the_parts_of_a_step_add_up_to_it(tmp_path):
    run = make_run(tmp_path / "demo", [step_metrics(1), step_metrics(2)])
    run.refresh()
    parts = time_split(run)
    assert [name for name, _ in parts] == [
        "wait for batch",
        "wait for policy",
        "forward and backward",
    ]
    assert [sum(one.values[i] for _, one in parts) for i in (0, 1)] == [5.0, 5.0]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"env/calculator/breaker": 1.0}, "calculator: its breaker is open"),
        ({"rollout/calculator/faults": 16.0}, "calculator: 25% of its trajectories"),
        ({"rollout/calculator/truncated": 0.5}, "calculator: 50% of its episodes"),
        ({"time/wait_for_batch_seconds": 4.0}, "The learner waited for batches in 80%"),
        ({"parity/mean_abs_dlogp": 0.2}, "Engine and learner differ by 0.2"),
        (
            {"selection/all/played/trajectories": 10.0, "selection/all/dropped/trajectories": 7.0},
            "70% of what was played was not trained on",
        ),
    ],
)
def test_an_alert_says_what_was_seen(tmp_path, more, sentence):
    ended = {"status": "finished"}
    calm = make_run(tmp_path / "calm", [step_metrics(1)], summary=ended)
    loud = make_run(tmp_path / "loud", [step_metrics(1, **more)], summary=ended)
    for run in (calm, loud):
        run.refresh()
    assert texts(calm) == []
    assert [text.startswith(sentence) for text in texts(loud)] == [True]


def test_a_node_that_was_lost_is_an_alert_also_when_the_run_is_over(tmp_path):
    lost = "node 10.0.0.7 is gone: engine-1, host-0"
    status = STATUS | {"lost": [lost]}
    run = make_run(
        tmp_path / "demo", [step_metrics(1)], status=status, summary={"status": "finished"}
    )
    run.refresh()
    assert texts(run) == [f"{lost}."]


def test_a_reward_that_fell_is_an_alert(tmp_path):
    metrics = [
        step_metrics(i, **{"rollout/calculator/reward": 0.9 if i < 12 else 0.4}) for i in range(30)
    ]
    run = make_run(tmp_path / "demo", metrics, summary={"status": "finished"})
    run.refresh()
    assert texts(run) == ["calculator: the reward fell from 0.90 to 0.40 (means of ten steps)."]


def test_a_thinned_series_keeps_its_spikes():
    values = [0.0] * 10_000
    values[4321], values[7777] = 5.0, -5.0
    shown = thin(Series(list(range(10_000)), values))
    assert len(shown) <= 400
    assert [4321, 5.0] in shown and [7777, -5.0] in shown
    assert [s for s, _ in shown] == sorted(s for s, _ in shown)


def test_keys_are_found_by_expression_and_a_bad_one_is_a_sentence():
    assert matching(["loss/b", "loss/a", "time/x"], "^loss/") == ["loss/a", "loss/b"]
    with pytest.raises(ValueError, match="is no regular expression"):
        matching(["a"], "(")


def test_a_tooltip_has_seven_digits_of_a_value_at_most():
    series: dict[str, Series] = {}
    add(series, {"step": 1, "loss/loss": 0.1 + 0.2, "big": 1234567.891, "small": 1.23456789e-9})
    shown = [one["data"] for one in charts.lines("", list(series.items()))["series"]]
    assert shown == [[[1, 0.3]], [[1, 1234568.0]], [[1, 1.234568e-9]]]
    points = [[0.5, 2 / 3]]
    curves = charts.curves("", [charts.Curve("a", points)])["series"]
    assert curves[0]["data"] == [[0.5, 0.6666667]]


def test_no_name_of_a_run_folder_is_a_key_in_a_chart():
    series: dict[str, Series] = {}
    add(series, {"step": 1, ":formatter": 1.0})
    options = charts.lines(":title", list(series.items()))

    def keys(value):
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    assert options["series"][0]["name"] == ":formatter"
    assert not any(key.startswith(":") for key in keys(options))
    assert options["tooltip"]["renderMode"] == "richText"


def index(folder: Path) -> sqlite3.Connection:
    """An index as a run in progress has it open, with two trajectories."""
    connection = sqlite3.connect(folder / "trajectories.sqlite")
    connection.execute("pragma journal_mode=wal")
    connection.execute(_INDEX)
    insert = "insert into trajectories (id, env, split, reward, fault) values (?, ?, ?, ?, ?)"
    connection.executemany(
        insert, [("a", "units", "train", 1.0, ""), ("b", "units", "train", None, "timeout")]
    )
    connection.commit()
    return connection


def test_the_index_is_read_while_a_run_writes_it_and_leaves_no_file_behind(tmp_path):
    connection = index(tmp_path)
    (live,) = trajectory_counts(tmp_path)
    connection.close()
    (ended,) = trajectory_counts(tmp_path)
    assert live == ended
    assert (live.trajectories, live.judged, live.faults, live.reward) == (2, 1, 1, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["trajectories.sqlite"]


def test_an_index_that_cannot_be_read_is_said_until_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr(run_data, "FRESH_SECONDS", 0.0)
    run = make_run(tmp_path / "demo")
    (run.folder / "trajectories.sqlite").write_bytes(b"no database, only text" * 99)
    for _ in range(2):
        run.refresh()
        assert texts(run) == ["trajectories.sqlite cannot be read now: file is not a database"]
    (run.folder / "trajectories.sqlite").unlink()
    index(run.folder).close()
    run.refresh()
    assert (texts(run), trajectory_rows(run)[0]["trajectories"]) == ([], "2")


def test_what_a_page_holds_does_not_change_under_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_data, "FRESH_SECONDS", 0.0)
    run = make_run(tmp_path / "demo", [step_metrics(1)])
    run.refresh()
    held = run.series
    run.refresh()
    assert run.series is held  # nothing new was written, so nothing was read
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(step_metrics(2)) + "\n")
    run.refresh()
    key = "time/total_seconds"
    assert (held[key].steps, run.series[key].steps) == ([1], [1, 2])


def test_runs_are_listed_and_only_listed_names_lead_anywhere(tmp_path):
    make_run(tmp_path / "runs" / "old")
    make_run(tmp_path / "runs" / "new")
    make_run(tmp_path / "secret")
    os.utime(tmp_path / "runs" / "old" / "config.toml", (1, 1))
    (tmp_path / "runs" / "no run").mkdir()
    os.mkdir(os.fsencode(tmp_path / "runs") + b"/\xff")
    (tmp_path / "runs" / os.fsdecode(b"\xff") / "config.toml").touch()
    runs = RunsFolder(tmp_path / "runs")
    assert runs.names() == ["new", "old"]
    assert runs.find("new") is runs.find("new")
    assert [runs.find(name) for name in ("../secret", "no run", "", ".", "x" * 999)] == [None] * 5


def test_a_run_that_is_removed_while_it_is_listed_hides_no_other(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        make_run(tmp_path / name)
    runs = RunsFolder(tmp_path)
    monkeypatch.setattr(RunsFolder, "_is_run", lambda self, name: True)
    (tmp_path / "b" / "config.toml").unlink()
    assert sorted(runs.names()) == ["a", "c"]


def test_a_folder_that_cannot_be_shown_is_a_sentence(tmp_path):
    make_run(tmp_path / "demo")
    with pytest.raises(ConfigError, match="no such folder"):
        RunsFolder(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="this is a run folder; name the one above it"):
        RunsFolder(tmp_path / "demo")


def rewarded(step: int, total: float, solved: float, polite: float) -> dict[str, float]:
    return step_metrics(
        step,
        **{
            "rollout/calculator/reward": total,
            "reward/calculator/solved": solved,
            "reward/calculator/polite": polite,
        },
    )


def test_a_reward_that_rises_without_solving_more_is_an_alert_that_names_what_rose(tmp_path):
    """A hack of one named reward: the total goes from 0.56 to 0.87, the tasks are solved as before."""
    rise = [min(1.0, max(0.0, (step - 15) / 20)) for step in range(1, 51)]
    hacked = [
        rewarded(step, 0.56 + 0.31 * up, 0.45 + 0.01 * (step % 3), 0.2 + 0.7 * up)
        for step, up in enumerate(rise, start=1)
    ]
    [said] = [
        text for text in texts(make_run_read(tmp_path / "a", hacked), 151.0) if "solved" in text
    ]
    assert said.startswith("calculator: since step ")
    assert "from 0.56 to 0.87, while solved went from 0.46 to 0.46" in said
    assert "polite rose most, from 0.20 to 0.90" in said
    honest = [
        rewarded(step, 0.56 + 0.31 * up, 0.45 + 0.4 * up, 0.2 + 0.1 * up)
        for step, up in enumerate(rise, start=1)
    ]
    assert not any("solved" in text for text in texts(make_run_read(tmp_path / "b", honest), 151.0))


def make_run_read(folder: Path, metrics: list[dict]) -> RunData:
    run = make_run(folder, metrics)
    run.refresh()
    return run


def test_what_a_stop_rule_said_is_an_alert(tmp_path):
    run = make_run(tmp_path / "a", [step_metrics(1)])
    what = "training ends after step 1 of 4: the budget is used up: 1 steps (stop.max_steps = 1)"
    event = {"lane": "supervision", "name": "stop", "start": 101.0, "end": 101.0, "what": what}
    (run.folder / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    run.refresh()
    assert f"{what}." in texts(run, 102.0)
