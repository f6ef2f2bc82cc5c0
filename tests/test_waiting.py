"""The waiting-for table: deadlines, usual times, suspects, and what `dorado status` says of a run."""

import asyncio
import json
import time
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from fakes import Remote, waiting
from rich.console import Console
from typer.testing import CliRunner

from rl.cli import app
from rl.config import InitConfig, ModelConfig, RunConfig
from rl.env_table import DeadlineConfig, EnvTable
from rl.loop.dispatcher import Dispatcher
from rl.record.run_folder import RunFolder
from rl.record.status import (
    SILENT_SECONDS,
    Status,
    describe,
    in_progress,
    read_status,
    sentence,
    suspect,
    write_end,
)
from rl.record.waiting import Latency, PhaseTimes, WaitingTable, deadline, merge, worst
from rollout.trajectory import Phase


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return RunConfig(
        name="demo",
        runs_dir=str(tmp_path / "runs"),
        model=ModelConfig(init=InitConfig()),
        env=(EnvTable(id="calculator"),),
    )


def status(**changes) -> Status:
    fields = {
        "time": time.time(),
        "stage": "training",
        "step": 3,
        "steps": 9,
        "learner": "waits for a batch: 1 of 4 groups are there",
        "window": (2, 3),
        "pending": 4,
        "engines": {"engine-0": 2, "engine-1": None},
        "asleep": ("engine-1",),
        "in_flight": 16,
        "buffered": 8,
        "counts": {"calculator": {"tool": 12, "generate": 4}},
        "waiting": (waiting("g000001.3"),),
        "silent": (),
    }
    return Status(**{**fields, **changes})


def text(state: Status, **options) -> str:
    console = Console(width=160, record=True)
    console.print(describe(state, **options))
    return console.export_text()


def test_usual_times_are_per_environment_and_phase_and_need_enough_of_them():
    times = PhaseTimes()
    times.add("a", [Phase("tool", 0.0, float(n)) for n in range(1, 101)])
    times.add("b", [Phase("tool", 0.0, 1.0)] * 19)
    times.add("a", [Phase("generate", 0.0, 0.5)] * 20)
    assert times.latency() == {
        ("a", "tool"): Latency(50.0, 95.0, 99.0, 100),
        ("a", "generate"): Latency(0.5, 0.5, 0.5, 20),
    }


@pytest.mark.parametrize(
    ("phase", "seconds", "age", "left", "then"),
    [
        ("tool", 12.0, 20.0, 18.0, "failed: env_fault"),
        ("tool", 12.0, 290.0, 10.0, "failed: timeout"),
        ("between", 1.0, 100.0, 200.0, "failed: timeout"),
        ("reset", 4.0, 4.0, 1.0, "failed: env_fault"),
    ],
)
def test_the_nearest_deadline_counts_and_says_what_happens_at_it(phase, seconds, age, left, then):
    deadlines = DeadlineConfig(reset_seconds=5, tool_seconds=30)
    limits = {"episode_seconds": 300.0, "request_seconds": 120.0}
    assert deadline(phase, seconds, age, deadlines, **limits) == (left, then)


def test_the_suspect_is_the_one_furthest_beyond_its_usual_time():
    rows = [
        waiting("long", seconds=50.0, p99=60.0),
        waiting("odd", seconds=9.0, p99=0.5),
        waiting("new", seconds=3.0, p99=None),
    ]
    assert [row.id for row in worst(rows, 2)] == ["odd", "new"]
    both = merge([WaitingTable((rows[0],), {("a", "tool"): 3}), WaitingTable((rows[1],), {})], 1)
    assert [row.id for row in both.rows] == ["odd"] and both.counts == {("a", "tool"): 3}


def test_several_controllers_latency_is_weighted_by_how_much_each_has_seen():
    key = ("a", "tool")
    few, many = Latency(1.0, 2.0, 3.0, 20), Latency(4.0, 5.0, 6.0, 60)
    both = merge([WaitingTable((), {}, latency={key: one}) for one in (few, many)], 1)
    assert both.latency == {key: Latency(3.25, 4.25, 5.25, 80)}


@pytest.mark.parametrize(
    ("phase", "options", "left", "then"),
    [
        ("generate", {}, 200.0, "failed: timeout"),
        ("generate", {"written": 5.0}, 115.0, "failed: engine_fault"),
        ("tool", {"acts": 3}, 50.0, "failed: env_fault"),
        ("user", {"user_left": 60.0}, 20.0, "failed: user_fault"),
        ("judge", {}, -10.0, "failed: judge_fault"),
    ],
)
def test_a_turn_has_a_deadline_while_an_engine_writes_it_and_a_call_has_its_own(
    phase, options, left, then
):
    """In the phase for 40 s, begun 100 s ago; an episode may take 300 s, a request 120 s, a call 30 s."""
    limits = {"episode_seconds": 300.0, "request_seconds": 120.0}
    found = deadline(phase, 40.0, 100.0, DeadlineConfig(), **limits, **options)
    assert found == (left, then)


async def test_a_controller_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("rl.loop.dispatcher.WAITING_SECONDS", 0.05)

    async def never(count: int) -> WaitingTable:
        await asyncio.Event().wait()
        raise AssertionError

    async def answers(count: int) -> WaitingTable:
        return WaitingTable((waiting("here"),), {("calculator", "tool"): 1})

    controllers = {
        "a": SimpleNamespace(waiting=Remote(never)),
        "b": SimpleNamespace(waiting=Remote(answers)),
    }
    dispatcher = Dispatcher(SimpleNamespace(controllers=controllers), AsyncMock(), 1.0)
    table = await dispatcher.waiting(10)
    assert [row.id for row in table.rows] == ["here"] and table.silent == ("a",)
    assert suspect(status(silent=table.silent)) == "a did not answer (see the logs)"
    assert "a does not answer" in text(status(silent=table.silent), live=True)


def test_a_row_is_one_sentence():
    assert sentence(waiting("g000001.3")) == (
        "g000001.3 (calculator, version 3) in tool at host-0 for 99 s (99 of 100 take less than "
        "4.0 s), failed: env_fault in 1 s"
    )


def test_a_status_comes_back_as_it_was_written(config):
    folder = RunFolder(config)
    folder.status(status().as_json())
    state = read_status(folder.path)
    assert state.waiting == status().waiting and state.window == (2, 3)
    assert in_progress(folder.path)
    folder.close()
    assert not in_progress(folder.path)


def test_the_command_says_what_a_run_does_and_waits_for(config):
    folder = RunFolder(config)
    folder.status(status().as_json())
    shown = CliRunner().invoke(app, ["status", str(folder.path)], env={"COLUMNS": "160"})
    assert shown.exit_code == 0
    for part in (
        "training, step 3 of 9",
        "waits for a batch: 1 of 4",
        "2 3; version 4 waits for a place",
        "engine-0: 2  engine-1: - (asleep)",
        "12 in tool",
        "g000001.3",
        "host-0",
    ):
        assert part in shown.stdout, part
    found = json.loads(CliRunner().invoke(app, ["status", str(folder.path), "--json"]).stdout)
    assert found["live"] and found["waiting"][0]["id"] == "g000001.3"
    folder.close()
    ended = CliRunner().invoke(app, ["status", str(folder.path)])
    assert "not running any more" in ended.stdout


def test_a_run_that_has_ended_is_a_verdict_its_results_and_nothing_in_flight(config):
    folder = RunFolder(config)
    many = tuple(waiting(f"g{n:06}.0") for n in range(30))
    folder.status(status(waiting=many).as_json())
    shown = CliRunner().invoke(app, ["status", str(folder.path)], env={"COLUMNS": "160"}).stdout
    assert shown.startswith("running: training, step 3 of 9")
    assert shown.count("g0000") == 10 and "and 20 more (--json has all)" in shown
    folder.summary(
        {
            "status": "finished",
            "steps": 9,
            "eval": {"before": {"a": 0.25}, "after": {"a": 0.75}, "faults": {"before": 0}},
        }
    )
    folder.close()
    write_end(folder.path, "finished", "")
    shown = CliRunner().invoke(app, ["status", str(folder.path)], env={"COLUMNS": "160"}).stdout
    first, *rest = shown.splitlines()
    assert first.startswith("finished 0 s ago, step 9 of 9")
    assert "0.25" in shown and "0.75" in shown and len(rest) <= 10
    state = read_status(folder.path)
    assert (state.in_flight, state.waiting, state.counts) == (0, (), {})
    assert not any(one.fault or one.asked for one in state.actors)


def test_a_run_that_never_began_to_play_has_a_verdict_too(config):
    folder = RunFolder(config)
    folder.close()
    write_end(folder.path, "failed", "error: engine-0 could not start: no GPU")
    said = CliRunner().invoke(app, ["status", str(folder.path)]).stdout
    assert said.startswith("failed 0 s ago, before its first step")
    assert "error: engine-0 could not start: no GPU" in said


def test_a_run_that_does_not_write_any_more_is_suspected_itself():
    state = status()
    assert "does not answer" not in text(state, live=True, now=state.time + 6)
    later = text(state, live=True, now=state.time + SILENT_SECONDS + 10)
    assert "the run's own loop does not answer: it wrote this 40 s ago" in later


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "this is no run folder"), ("{", "cannot be read"), ('{"waiting": 3}', "cannot be")],
)
def test_a_folder_without_a_status_is_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "status.json").write_text(content, encoding="utf-8")
    result = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_run_that_has_just_begun_is_said_to_have(config):
    folder = RunFolder(config)
    result = CliRunner().invoke(app, ["status", str(folder.path)])
    folder.close()
    assert result.exit_code == 2 and "the run has not begun to play yet" in result.stderr
