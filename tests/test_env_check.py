"""`dorado env check`: each planted defect fails its own check, with the sentence its author needs."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from agent_scripts import PLAIN
from typer.testing import CliRunner

from rl.cli import app
from rl.config_file import ConfigError
from rl.env_tools.check.report import PROMISES, Finding, Report, filled
from rl.env_tools.check.run import Outcome, _listen, check

pytestmark = pytest.mark.process

FILE = Path(__file__).parent / "planted_envs.py"
# What is refused when its class is made stands in a file of its own.
FILES = {"UntypedTool": FILE.with_name("planted_untyped.py")}
AT_ONCE = 4
# class, check, what its sentence says
DEFECTS = [
    ("LeakingProcess", "leaks", "processes ("),
    ("LeakingOrphan", "leaks", "sleep 1000"),
    ("LeakingPort", "leaks", "listening ports (127.0.0.1:"),
    ("LeakingThread", "leaks", "threads (poller"),
    ("LeakingFile", "leaks", ".world"),
    ("LeakingWhenCut", "leaks", "2 episodes that a deadline cut off left"),
    ("BlockingCall", "blocking", "tool 'add' blocks the event loop for 0.2"),
    ("BlockingForEver", "blocking", "reset() blocks the event loop for more than"),
    ("RandomReset", "determinism", "played twice, a task differs: reset() gave 'hint 0."),
    ("HashOrder", "determinism", "in two processes, reset() gave '"),
    ("RandomTasks", "determinism", "tasks('train', seed=0) gave task"),
    ("OverlappingSplits", "splits", "200 of the first 200 held-out tasks are among"),
    ("FewTasks", "tasks", "sample() has to make many different tasks"),
    ("EndingTasks", "tasks", "tasks('train') ended after 20"),
    ("UnpicklableState", "pickle", "self.judge cannot be pickled after reset(): "),
    ("UnpicklableFromBirth", "pickle", "the environment cannot be pickled before reset()"),
    ("RewardOutsideRange", "range", "'solved' was 5, and reward_range is (0, 1)"),
    ("UntypedTool", "tools", "UntypedTool.add: argument 'b' needs a type hint"),
    ("UndescribedTool", "tools", "tool 'power' needs a docstring"),
    ("HangingReset", "deadlines", "reset: no answer within 2 s"),
    ("DeafReset", "deadlines", "it catches CancelledError"),
    ("RaisingClose", "close", "close(): RuntimeError: there is no connection"),
    ("CloseNeedsReset", "close", "close() without reset(): AttributeError"),
    ("HurriedScore", "clock", "score() gave {'solved': 1.0}, and then {'solved': 0.5}"),
    ("DatedReset", "clock", "reset() gave '20"),
    ("DatedByHand", "clock", "reset() gave '20"),
    ("FailingExpert", "expert", "the expert scores {'solved': 0.0} on task {\"op\""),
    ("GenerousScore", "idle", "an answer without a word scores {'solved': 1.0}"),
    (
        "MissingServer",
        "acts",
        "reset(): this machine lacks what it needs: no server at 127.0.0.1:9",
    ),
    ("RaisingScore", "acts", "score: AttributeError"),
    ("RaisingTool", "acts", "tool 'add': ZeroDivisionError"),
    ("ExitingReset", "acts", "reset() ended the process with exit status 7"),
]


def checked_together(
    request: pytest.FixtureRequest, run_check: Callable[[str], Report]
) -> Iterator[dict[str, Future[Report]]]:
    """Checks of all the names that a fixture's tests are selected for, some at a time: most of a check
    is starting processes and waiting for deadlines."""
    mine = [one for one in request.session.items if one.path == request.path]
    items = [one for one in mine if isinstance(one, pytest.Function)]
    names = [str(i.callspec.params["name"]) for i in items if request.fixturename in i.fixturenames]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield {name: threads.submit(run_check, name) for name in names}


@pytest.fixture(scope="module")
def planted(request):
    yield from checked_together(
        request, lambda name: check(f"{FILES.get(name, FILE)}:{name}", seconds=2)
    )


@pytest.fixture(scope="module")
def built_in(request):
    yield from checked_together(request, check)


# Some thirty checks, each of processes of its own that wait for deadlines.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "failing", "sentence"), DEFECTS, ids=[one[0] for one in DEFECTS])
def test_a_planted_defect_fails_its_own_check_and_no_other(planted, name, failing, sentence):
    report = planted[name].result()
    assert [one.check for one in report.failures] == [failing], str(report)
    assert sentence in report.failures[0].sentence


def test_a_block_is_shown_with_the_line_that_blocks():
    report = check(f"{FILE}:BlockingCall", seconds=2)
    last_call = report.failures[0].detail.rstrip().splitlines()[-2:]
    assert "planted_envs.py" in last_call[0] and "in add" in last_call[0]
    assert last_call[1].strip() == "time.sleep(0.2)"


def test_an_act_that_goes_on_is_shown_with_the_line_where_it_waits():
    report = check(f"{FILE}:NeverEnding", seconds=1)
    assert [one.check for one in report.failures] == ["deadlines"]
    assert "planted_envs.py" in report.failures[0].detail
    assert "in _try_for_ever" in report.failures[0].detail


@pytest.mark.parametrize("name", ["DeclaredRange", "WarmingUp"])
def test_what_is_no_defect_passes(name):
    assert check(f"{FILE}:{name}", seconds=5).passed


@pytest.mark.parametrize("name", ["LeakingOrphan", "ExitingReset"])
def test_a_check_leaves_no_process_behind(name):
    """By the command: checks in this process's threads would start theirs with the mark, too."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "rl", "env", "check", f"{FILE}:{name}", "--seconds", "2"]
    assert subprocess.run(command, env=os.environ | {"DORADO_TEST_MARK": mark}).returncode == 1
    assert [p for p in psutil.process_iter() if _mark(p) == mark] == []


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("DORADO_TEST_MARK")
    except psutil.Error:
        return None


BUILT_IN = [
    point.value
    for point in entry_points(group="dorado.envs")
    if point.value.startswith("envs.builtin.")
]


SLOW = pytest.param("envs.builtin.slow_calculator:SlowCalculator", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [SLOW, *BUILT_IN])
def test_the_built_in_environments_keep_every_promise(built_in, name):
    report = built_in[name].result()
    assert report.passed, str(report)
    assert {one.outcome for one in report.findings} == {"pass"}


def test_a_data_set_is_checked_as_far_as_it_can_be(tmp_path):
    rows = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(400)]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    report = check("dataset", {"path": str(file)})
    assert report.passed, str(report)
    skipped = {one.check: one.sentence for one in report.findings if one.outcome == "skip"}
    assert set(skipped) == {"expert", "idle", "range"}
    assert "a judge has to" in skipped["idle"]


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("calculater", {}, "did you mean 'calculator'?"),
        (f"{FILE}:Nothing", {}, "has no class 'Nothing'"),
        ("calculator", {"larges": 3}, "config.larges: unknown key; known here are largest"),
        ("calculator", {"largest": "x"}, "config.largest: input should be a valid integer"),
    ],
)
def test_a_bad_input_is_one_sentence(name, config, sentence):
    with pytest.raises(ConfigError) as caught:
        check(name, config)
    assert sentence.lower() in str(caught.value).lower()


def run(*arguments: str, **variables: str):
    return CliRunner().invoke(app, ["env", "check", *arguments], env=dict(variables))


def test_the_command_prints_a_line_per_promise_and_says_0():
    done = run("calculator", COLUMNS="120")
    assert done.exit_code == 0, done.output
    assert all(promise in done.output for promise in PROMISES.values())
    assert "14 of 14 promises kept" in done.output


def test_the_command_says_1_and_what_to_do(monkeypatch):
    monkeypatch.chdir(FILE.parent)
    done = run("planted_envs.py:RewardOutsideRange", "--json")
    assert done.exit_code == 1
    report = json.loads(done.output)
    assert (report["environment"], report["passed"]) == (
        "planted_envs.py:RewardOutsideRange",
        False,
    )
    failed = [one for one in report["checks"] if one["outcome"] == "fail"]
    assert [one["check"] for one in failed] == ["range"]
    assert "declare its range as reward_range" in failed[0]["sentence"]


def test_the_command_takes_the_environments_settings():
    done = run("sensors", "--config", '{"most_failures": 0}', "--json")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no_such"], "environment 'no_such' does not exist"),
        (["calculator", "--config", "{"], "--config: not valid JSON"),
        (["calculator", "--config", "[1]"], "--config: [1] has to be a JSON object"),
    ],
)
def test_a_bad_input_of_the_command_says_2(arguments, sentence):
    done = run(*arguments)
    assert done.exit_code == 2
    assert sentence in done.output and "Traceback" not in done.output


def test_of_several_findings_of_a_check_the_first_failure_stands():
    first, second = (Finding("range", "fail", text) for text in ("first", "second"))
    report = filled("x", [Finding("range", "pass"), first, second, Finding("tools", "pass")], 1.0)
    by_check = {one.check: one for one in report.findings}
    assert by_check["range"] == first
    assert by_check["leaks"].sentence == "not reached: range failed"
    assert list(by_check) == list(PROMISES)
    assert not report.passed and os.linesep not in report.failures[0].sentence


def test_the_last_words_of_a_check_that_has_ended_are_heard():
    """It may end just when nobody looks at the pipe."""
    reading, writing = os.pipe()

    def ends() -> int:
        os.write(writing, b'{"end": true}\n')
        return 0

    process: Any = SimpleNamespace(poll=ends)
    try:
        assert _listen(process, reading, Outcome(), 5.0)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.slow  # two whole checks
def test_an_agent_plays_its_environment_once_and_what_was_not_looked_at_is_said(tmp_path):
    rows = [{"instruction": f"{n} plus 1 ?", "answer": str(n + 1)} for n in range(40)]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "tasks.jsonl").write_text(text, encoding="utf-8")
    agent = tmp_path / "agent.py"
    agent.write_text(PLAIN + "ask(sys.stdin.read())", encoding="utf-8")
    usual = {"tasks": str(tmp_path / "tasks.jsonl"), "answer_file": "a.txt", "sandbox": "none"}
    config = {**usual, "agent": str(agent)}
    report = check("agent", config, seconds=20)
    assert report.passed, str(report)
    [found] = [one for one in report.findings if one.check == "agent"]
    assert "1 answers, completed, {'solved': 0.0}. Not looked at" in found.sentence
    agent.write_text("raise SystemExit('no module named x')", encoding="utf-8")
    broken = check("agent", config, seconds=20)
    [failed] = broken.failures
    assert failed.check == "agent" and "no module named x" in failed.sentence + failed.detail
