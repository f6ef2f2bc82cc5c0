"""The run folder: nothing is overwritten, every line is JSON, and the index points at the right line."""

import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import group_report, scored

from rl.config import InitConfig, ModelConfig, RunConfig, load_config
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.record.run_folder import LEARNED, LearnedWriter, RunFolder, TrajectoryWriter
from rl.samples.group import member_report
from rl.samples.samples import Dropped
from trainer.sample import TokenScores


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return RunConfig(
        name="demo",
        runs_dir=str(tmp_path / "runs"),
        model=ModelConfig(init=InitConfig()),
        env=(EnvTable(id="calculator"),),
    )


@pytest.fixture
def folder(config):
    opened = RunFolder(config)
    yield opened
    opened.close()


def test_origins_are_beside_the_settings(config):
    opened = RunFolder(config, origins={"steps": "--steps"})
    opened.close()
    assert json.loads((config.folder / "origins.json").read_text(encoding="utf-8")) == {
        "steps": "--steps"
    }


def test_loads_of_experts_are_written_and_those_of_a_large_model_seldom(folder):
    for step in range(1, 12):
        folder.experts(step, 2, [[0.5, 0.25, 0.25]])
    written = lines(folder.path / "experts.jsonl")
    assert [line["step"] for line in written] == list(range(1, 12))
    assert written[0] == {"step": 1, "computing": 2, "loads": [[0.5, 0.25, 0.25]]}
    for step in range(12, 42):
        folder.experts(step, 2, [[0.5] * 2049] * 2)
        folder.experts(step, 0, [])
    assert [line["step"] for line in lines(folder.path / "experts.jsonl")][11:] == [20, 30, 40]


def lines(path: Path) -> list[dict]:
    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    return [
        json.loads(line, parse_constant=refuse)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def test_a_new_folder_holds_the_resolved_settings_and_room_for_the_rest(config, folder):
    assert folder.kept is None
    assert load_config(folder.path / "config.toml") == config
    names = {p.name for p in folder.path.iterdir()}
    assert {"trajectories", "checkpoints", "logs", "metrics.jsonl", "events.jsonl"} <= names


def test_an_earlier_run_of_the_name_is_kept_aside_whole(config):
    kept = []
    for number in range(3):
        folder = RunFolder(config)
        folder.metrics(1, {"number": float(number)})
        folder.close()
        kept.append(folder.kept)
    assert kept[0] is None
    assert len({kept[1], kept[2], folder.path}) == 3
    assert [lines(p / "metrics.jsonl")[0]["number"] for p in (*kept[1:], folder.path)] == [0, 1, 2]
    assert all(p.name.startswith("demo.") for p in kept[1:])


def test_the_folder_of_a_run_in_progress_is_refused_and_left_alone(config, folder):
    folder.metrics(1, {"loss/loss": 0.5})
    with pytest.raises(ConfigError, match="name: a run called 'demo' is in progress"):
        RunFolder(config)
    assert lines(folder.path / "metrics.jsonl")[0]["loss/loss"] == 0.5
    assert [p for p in folder.path.parent.iterdir() if p.is_dir()] == [folder.path]


def test_metrics_are_one_json_line_per_step_without_what_is_no_number(folder):
    folder.metrics(1, {"loss/loss": 0.5, "parity/mean_abs_dlogp": math.nan, "optim/big": math.inf})
    folder.metrics(2, {"loss/loss": 0.25})
    first, second = lines(folder.path / "metrics.jsonl")
    assert first.keys() - {"optim/big"} == {"step", "time", "loss/loss"}
    assert (second["step"], second["loss/loss"]) == (2, 0.25)
    (named,) = lines(folder.path / "not_finite.jsonl")
    assert named == {"step": 1, "keys": ["parity/mean_abs_dlogp", "optim/big"]}


@pytest.mark.parametrize(("compared", "alerts"), [(0, False), (0.0, False), (3, True)])
def test_a_mean_over_nothing_is_left_out_and_raises_no_alert(folder, compared, alerts):
    gap = {"parity/mean_abs_dlogp": math.nan, "parity/tokens": compared}
    folder.metrics(1, {"loss/loss": 0.5, **gap})
    folder.close()
    [written] = lines(folder.path / "metrics.jsonl")
    assert set(written) == {"step", "time", "loss/loss", "parity/tokens"}
    assert (folder.path / "not_finite.jsonl").exists() is alerts


def test_the_evaluation_before_is_that_of_each_environment_whatever_slashes_it_has(folder):
    rates = {
        "math": 0.1,
        "math/easy": 0.2,
        "math/hard/pass_rate": 0.3,
        "eval/x": 0.4,
        "a/all/b": 0.5,
    }
    folder.metrics(
        0, {f"eval/{env}/pass_rate": rate for env, rate in rates.items()} | {"eval/n": 1}
    )
    assert folder.eval_before() == rates


def test_events_are_spans_in_lanes(folder):
    folder.event("learner", "step 1", 10.0, 12.5, group="g1")
    assert lines(folder.path / "events.jsonl") == [
        {"lane": "learner", "name": "step 1", "start": 10.0, "end": 12.5, "group": "g1"}
    ]


def test_the_index_points_at_the_line_of_each_trajectory(folder):
    written = {}
    for name in ("controller-0", "controller-1"):
        writer = TrajectoryWriter(folder.path, name)
        for number in range(3):
            id = f"{name}.{number}é"
            one = scored(id, reward=number / 2)
            written[id] = member_report(one, *writer.write(one))
    folder.index(group_report("shop", list(written.values())), "train")
    index = sqlite3.connect(folder.path / "trajectories.sqlite")
    found = index.execute("select id, file, offset, reward from trajectories").fetchall()
    assert {row[0] for row in found} == set(written)
    for id, file, offset, reward in found:
        with (folder.path / file).open("rb") as stream:
            stream.seek(offset)
            record = json.loads(stream.readline())
        assert (record["id"], record["reward"]) == (id, reward)


def test_a_controller_that_is_started_anew_goes_on_in_its_file(tmp_path):
    (tmp_path / "trajectories").mkdir()
    TrajectoryWriter(tmp_path, "c").write(scored("first"))
    file, offset = TrajectoryWriter(tmp_path, "c").write(scored("second"))
    text = (tmp_path / file).read_bytes()
    assert json.loads(text[offset:])["id"] == "second"
    assert [json.loads(line)["id"] for line in text.splitlines()] == ["first", "second"]


def test_the_line_of_a_trajectory_is_its_whole_record(tmp_path):
    (tmp_path / "trajectories").mkdir()
    one = scored("t0", reward=0.5, fault="")
    file, _ = TrajectoryWriter(tmp_path, "c").write(one)
    (record,) = lines(tmp_path / file)
    turn, written = one.trajectory.turns[0], record["turns"][0]
    assert written["completion_ids"] == list(turn.completion_ids)
    assert written["rollout_logprobs"] == list(turn.rollout_logprobs)
    assert written["versions"] == [{"version": 0, "start": 0, "end": 2}]
    assert record["task"] == {
        "env": "fake",
        "data": {"answer": "42"},
        "noise": 0,
        "id": one.trajectory.task.id,
    }
    assert (record["rewards"], record["stop_reason"]) == ({"solved": 0.5}, "completed")


def test_the_index_says_what_became_of_each_trajectory(folder):
    used, fault, filtered = (
        member_report(one, "f", 0)
        for one in (
            scored("used"),
            scored("fault", stop="timeout", turns=(), fault="no end within 1 s"),
            scored("filtered", 0.25),
        )
    )
    report = group_report("shop", [used, fault, filtered])
    dropped = (
        Dropped(("fault",), "failed", "timeout"),
        Dropped(("filtered",), "filtered", "zero_variance"),
    )
    folder.index(replace(report, sample_ids=("used",), dropped=dropped), "train")
    index = sqlite3.connect(folder.path / "trajectories.sqlite")
    found = index.execute(
        "select id, outcome, reward, first_version, fault, split from trajectories"
    ).fetchall()
    assert found == [
        ("used", "sample", 1.0, 0, "", "train"),
        ("fault", "failed:timeout", None, None, "no end within 1 s", "train"),
        ("filtered", "filtered:zero_variance", 0.25, 0, "", "train"),
    ]


def test_the_index_points_at_what_training_computed_of_a_trajectory(folder):
    writer = LearnedWriter(folder.path)
    experts = np.array([[[0, 2], [1, 3]], [[4, 0], [300, 5]]], dtype=np.int16)
    none = np.empty(0, dtype=np.int16)
    first = TokenScores("a", [0.5, 0.5], [-0.123456789, None], [1.0, 0.0], experts)
    again = TokenScores("a", [0.25, 0.25], [-0.1, -0.2], [0.5, 0.5], none)
    folder.learned(
        1, writer.write(1, [TokenScores("b", [1.0, 2.0], [-1.0, -1.0], [2.0, 2.0], none), first])
    )
    folder.learned(2, LearnedWriter(folder.path).write(2, [again]))
    index = sqlite3.connect(folder.path / "trajectories.sqlite")
    rows = index.execute("select step, offset from learned where id = 'a' order by step").fetchall()
    lines = (folder.path / LEARNED).read_bytes()
    found = [json.loads(lines[offset:].splitlines()[0]) for _, offset in rows]
    assert found[0] == {
        "id": "a",
        "step": 1,
        "advantages": 0.5,
        "learner_logprobs": [-0.123457, None],
        "entropies": [1.0, 0.0],
        "experts": [[[0, 2], [1, 3]], [[4, 0], [300, 5]]],
    }
    assert json.loads(lines.splitlines()[0])["advantages"] == [1.0, 2.0]
    assert (found[1]["id"], found[1]["step"]) == ("a", 2) and [s for s, _ in rows] == [1, 2]


def test_the_summary_is_there_whole_or_not_at_all(folder):
    with pytest.raises(TypeError):
        folder.summary({"status": object()})
    assert not (folder.path / "summary.json").exists()
    folder.summary({"status": "failed"})
    with pytest.raises(TypeError):
        folder.summary({"status": object()})
    assert json.loads((folder.path / "summary.json").read_text(encoding="utf-8")) == {
        "status": "failed"
    }
    folder.summary({"status": "finished"})
    assert json.loads((folder.path / "summary.json").read_text(encoding="utf-8")) == {
        "status": "finished"
    }
    assert not list(folder.path.glob("*.partial"))
