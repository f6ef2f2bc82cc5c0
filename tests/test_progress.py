"""The display of a run: plain lines without a terminal, a live view in one, a table at the end."""

import io
import re
import subprocess
import sys

import pytest
from dorado_command import ROOT
from rich.console import Console

from rl.record import progress as module
from rl.record.progress import Progress, TimeLeft

METRICS = {
    "time/total_seconds": 2.0,
    "time/tokens_per_second": 1234.0,
    "staleness/mean": 0.5,
    "staleness/max": 1.0,
    "parity/mean_abs_dlogp": 3e-6,
    "rollout/shop/reward": 0.25,
    "rollout/maths/reward": 0.75,
    "rollout/all/reward": 0.5,
    "rollout/shop/turns": 3.0,
}


def plain() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out, highlight=False, width=80)), out


def terminal() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, highlight=False, width=100)
    return Progress(console), out


def test_without_a_terminal_every_step_is_one_line():
    progress, out = plain()
    with progress:
        progress.stage("engines: starting 2")
        for step in (1, 2, 3):
            progress.step(step, 3, METRICS)
    first, *steps = out.getvalue().splitlines()
    assert re.fullmatch(r"\[0:00\] engines: starting 2", first)
    assert len(steps) == 3
    for number, line in enumerate(steps, 1):
        assert f"step {number}/3" in line
        for part in ("shop 0.25", "maths 0.75", "1,234 tok/s", "staleness 0.5", "3e-06", "left "):
            assert part in line
        assert "all 0.5" not in line
    assert "left 0:00" in steps[-1]
    assert "\x1b" not in out.getvalue(), "no control sequences in a file"


def test_each_environment_has_its_reward_whatever_slashes_its_name_has():
    names = {"math/easy": 0.25, "math/hard": 0.5, "x/all/y": 0.75, "all/z": 1.0}
    shared = {key: value for key, value in METRICS.items() if not key.startswith("rollout/")}
    progress, out = plain()
    with progress:
        rewards = {f"rollout/{env}/reward": value for env, value in names.items()}
        progress.step(1, 3, shared | rewards | {"rollout/all/reward": 9.0})
    said = " ".join(out.getvalue().split())
    assert "reward math/easy 0.25 math/hard 0.50 x/all/y 0.75 all/z 1.00 1,234 tok/s" in said


def test_a_step_without_comparable_logprobs_or_rewards_is_shown_all_the_same():
    progress, out = plain()
    progress.step(1, 3, {k: v for k, v in METRICS.items() if k.startswith(("time", "staleness"))})
    assert "step 1/3" in out.getvalue() and "nan" in out.getvalue()


def test_a_cold_start_is_its_first_update_and_ten_lines_however_many_there_are(clock):
    progress, out = plain()
    for step in range(1, 201):
        clock.now += 1
        progress.updates("cold start", step, 200, 1.5)
    lines = out.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0].endswith("cold start: 1/200  loss 1.500")
    assert lines[-1].endswith("cold start: 200/200  loss 1.500")


def test_a_slow_cold_start_says_something_every_minute(clock):
    progress, out = plain()
    for step in range(1, 201):
        clock.now += 25
        progress.updates("cold start", step, 200, 1.5)
    said = [int(re.search(r": (\d+)/", line)[1]) for line in out.getvalue().splitlines()]
    assert said[:9] == [1, 4, 7, 10, 13, 16, 19, 20, 23]


@pytest.mark.parametrize("make", [plain, terminal])
def test_a_note_stays_as_it_was_written(make):
    progress, out = make()
    with progress:
        progress.note("error: [/tmp/x] went [bold]wrong[/bold] in [calculator]")
    assert "error: [/tmp/x] went [bold]wrong[/bold] in [calculator]" in out.getvalue()


def test_a_long_line_is_not_cut():
    progress, out = plain()
    progress.note("word " * 60)
    assert ("word " * 60).strip() in out.getvalue()


def test_results_are_a_table_of_pass_rates_and_the_folder():
    progress, out = plain()
    progress.results({"shop": 0.25, "maths": 0.5}, {"shop": 1.0, "maths": 0.75}, "runs/demo")
    text = out.getvalue()
    rows = {
        cells[0]: cells[1:]
        for line in text.splitlines()
        if len(cells := re.findall(r"[\w.-]+", line)) == 3
    }
    assert rows["environment"] == ["before", "after"]
    assert rows["shop"] == ["0.25", "1.00"]
    assert rows["maths"] == ["0.50", "0.75"]
    assert rows["mean"] == ["0.38", "0.88"]
    assert text.splitlines()[-1] == "run folder: runs/demo"


def test_results_without_an_evaluation_before_say_so():
    progress, out = plain()
    progress.results({}, {"shop": 1.0}, "runs/demo")
    assert re.search(r"shop\W+-\W+1\.00", out.getvalue())
    assert "mean" not in out.getvalue()


def test_in_a_terminal_the_display_shows_stage_step_and_then_the_results():
    progress, out = terminal()
    with progress:
        progress.stage("cold start")
        progress.updates("cold start", 5, 10, 1.5)
        progress.step(2, 3, METRICS)
        progress.episodes(3, 10)
        assert progress.live is not None
        progress.live.refresh()
        progress.results({"shop": 0.25}, {"shop": 1.0}, "runs/demo")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    for part in ("dorado", "2 of 3", "reward shop", "tokens/s", "1,234", "held-out pass rate"):
        assert part in shown


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_every_line_from_the_cold_start_on_says_how_long_its_stage_still_takes(clock):
    progress, out = plain()
    with progress:
        for text in ("cold start", "engines: starting 2", "evaluation before training"):
            progress.stage(text, usual=60.0)
            clock.now += 20
            progress.note("a note")
        progress.stage("training: first rollouts", usual=60.0)
        for step in (1, 2):
            clock.now += 4
            progress.step(step, 2, METRICS)
        progress.note("after the steps")
    lines = out.getvalue().splitlines()
    assert all(re.match(r"\[\d+:\d\d, left (about )?\d+:\d\d\] ", line) for line in lines)
    assert lines[:2] == ["[0:00, left about 1:00] cold start", "[0:20, left about 0:40] a note"]
    assert lines[-3].startswith("[1:04, left 0:02] step 1/2"), "a step took 2 s of its own"
    assert lines[-1] == "[1:08, left 0:00] after the steps"


def test_a_part_of_a_stage_has_a_rate_of_its_own(clock):
    progress, out = plain()
    progress.stage("cold start", usual=100.0)
    clock.now += 20  # demonstrations, which nothing counts
    for done in (1, 2, 10):
        progress.count("cold start: updates", done, 20)
        clock.now += done
    stamps = [line.partition("]")[0] for line in out.getvalue().splitlines()]
    # 1 update is no rate yet; then 1 in 1 s; then 9 in 3 s.
    assert stamps[1:] == ["[0:20, left about 1:20", "[0:21, left 0:18", "[0:23, left 0:03"]


def test_episodes_are_counted_from_the_beginning_of_their_stage(clock):
    progress, out = plain()
    progress.stage("evaluation after training", usual=10.0)
    clock.now += 30
    progress.note("late")
    progress.episodes(3, 5)
    progress.note("three of five in 30 s")
    assert [line.partition("]")[0] for line in out.getvalue().splitlines()] == [
        "[0:00, left about 0:10",
        "[0:30, left about 0:07",
        "[0:30, left 0:20",
    ]


def test_a_stage_of_which_nothing_is_known_says_nothing_and_neither_does_the_last_line(clock):
    progress, out = plain()
    progress.stage("unheard of")
    progress.stage("engines", usual=30.0)
    progress.end("error: the engines did not start")
    assert out.getvalue().splitlines() == [
        "[0:00] unheard of",
        "[0:00, left about 0:30] engines",
        "[0:00] error: the engines did not start",
    ]


def test_time_left_is_a_share_of_a_stage_too(clock):
    left = TimeLeft(usual=40.0)
    clock.now += 10
    assert left.share == 0.25 and str(left) == "left about 0:30"
    left.set(10.0)
    assert left.share == 0.5 and str(left) == "left 0:10"
    assert TimeLeft().share is None


def test_in_a_terminal_a_stage_that_counts_nothing_has_its_time_as_its_bar(clock):
    progress, out = terminal()
    progress.stage("engines: starting 2", usual=40.0)
    clock.now += 20
    progress.console.print(progress._render())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "left about 0:20" in shown and shown.count("━") >= 15


def test_a_run_whose_reader_has_gone_goes_on(tmp_path):
    script = """
import sys
from pathlib import Path
from rl.record.progress import Progress
with Progress(log=Path(sys.argv[1])) as progress:
    for number in range(5000):
        progress.note(f"line {number}")
"""
    log = tmp_path / "terminal.log"
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(log)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert run.stdout is not None
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(60) == 0
    assert "line 4999" in log.read_text(encoding="utf-8")
