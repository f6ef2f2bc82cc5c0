"""The ends of `dorado train`: one sentence, an exit code, and a status that says the same."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from dorado_command import ROOT
from ray.exceptions import RayError
from test_resume import checkpoint as write_checkpoint
from typer.testing import CliRunner

from rl import launch
from rl.actors.handles import StartError
from rl.cli import app
from rl.config import RunConfig
from rl.fleet.node_watch import ControlLost
from rl.fleet.weight_sync import SyncError
from rl.loop.run_error import Collapsed, RunError
from rl.record.best_checkpoint import BEST
from rl.record.run_folder import RunFolder
from rl.record.status import read_status

pytestmark = pytest.mark.process

CONFIG = """
name = "demo"
model = { init = {} }
[[env]]
id = "calculator"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "demo.toml"
    file.write_text(CONFIG, encoding="utf-8")
    return file


def ends(config: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> tuple[int, str]:
    """The exit code and the output of a run that ends with this error."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(launch, "_train", fail)
    result = CliRunner().invoke(app, ["train", str(config)])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("steps", "best", "next"),
    [
        ((2, 5), 2, "with other settings --resume runs/demo --best goes on after step_2, its best"),
        (
            (2, 5),
            None,
            "with other settings --resume runs/demo/step_N goes on after an earlier step N",
        ),
        ((), None, "it has no checkpoint yet: dorado train runs/demo/config.toml begins it anew"),
    ],
)
def test_a_collapsed_run_names_its_best_checkpoint_to_go_on_from(
    config, monkeypatch, steps, best, next
):
    def fail(config: RunConfig, folder: RunFolder, *_: object) -> None:
        for step in steps:
            write_checkpoint(folder.path, step)
        if best:
            (folder.path / "checkpoints" / BEST).symlink_to(f"step_{best}")
        raise Collapsed("training ends after step 5 of 9: it has collapsed: the entropy was low")

    monkeypatch.setattr(launch, "_train", fail)
    result = CliRunner().invoke(app, ["train", str(config)])
    said = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "it has collapsed: the entropy was low (run folder: runs/demo); " in said
    assert said.endswith(next)


ANEW = "it has no checkpoint yet: dorado train runs/demo/config.toml begins it anew"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RunError("learner step 3: the learner died (see logs)"), 1, "the learner died"),
        (SyncError("no engine is left: engine-0 died"), 1, "no engine is left: engine-0 died"),
        (ControlLost("Ray's control service is gone"), 1, "control service is gone"),
        (RayError("the object store is gone"), 1, "error: Ray: the object store is gone"),
        (KeyboardInterrupt(), 130, "interrupted; what there is lies in runs/demo"),
        (asyncio.CancelledError(), 130, "interrupted; what there is lies in runs/demo"),
    ],
)
def test_every_end_is_one_sentence_with_what_to_type_next(
    config, monkeypatch, error, code, sentence
):
    ended, said = ends(config, monkeypatch, error)
    assert ended == code
    assert sentence in said and said.endswith(ANEW)
    status = read_status(Path("runs/demo"))
    assert status.outcome == ("interrupted" if code == 130 else "failed")
    assert sentence.removeprefix("error: ") in status.said


def test_a_start_that_fails_is_the_sentence_of_who_could_not_start(config, monkeypatch):
    ended, said = ends(config, monkeypatch, StartError("engine-0 could not start: no GPU"))
    assert ended == 1 and said.endswith("error: engine-0 could not start: no GPU")


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), SystemExit(3)])
def test_an_error_that_nobody_foresaw_is_a_sentence_too_and_its_traceback_in_the_folder(
    config, monkeypatch, error
):
    ended, said = ends(config, monkeypatch, error)
    assert ended == 1
    assert f"error: {type(error).__name__}: {error}" in said and "runs/demo/logs/error.log" in said
    assert "Traceback" in Path("runs/demo/logs/error.log").read_text(encoding="utf-8")
    assert read_status(Path("runs/demo")).outcome == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_ray_is_up_ends_the_run_with_a_sentence(config, monkeypatch, number):
    def wait(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(launch, "_train", wait)
    before = signal.getsignal(number)
    result = CliRunner().invoke(app, ["train", str(config)])
    assert result.exit_code == 130
    assert "interrupted; what there is lies in runs/demo" in " ".join(result.output.split())
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_settings_are_checked_is_a_word_and_leaves_nothing(
    config, monkeypatch, number
):
    monkeypatch.setattr("rl.preflight.check.check_run", lambda _: os.kill(os.getpid(), number))
    result = CliRunner().invoke(app, ["train", str(config)])
    assert (result.exit_code, result.output.strip()) == (130, "interrupted")
    assert not Path("runs").exists()


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    """Python run on a script of a test to its end."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        encoding="utf-8",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_command_line_is_imported_is_a_word_too(number):
    script = f"""
import os, sys, time
class AtImport:
    def find_spec(self, name, *rest):
        if name == "rl.cli":
            os.kill(os.getpid(), {int(number)})
            time.sleep(5)
sys.meta_path.insert(0, AtImport())
from rl.__main__ import main
main()
"""
    ended = run_script(script)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_a_second_signal_does_not_disturb_the_ending_and_one_that_was_ignored_stays_so():
    script = """
import os, signal, time
from rl.commands import ignore_signals, interruptible
signal.signal(signal.SIGHUP, signal.SIG_IGN)
try:
    with interruptible():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
except KeyboardInterrupt:
    ignore_signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    print("ended whole")
"""
    ended = run_script(script)
    assert (ended.returncode, ended.stdout) == (0, "ended whole\n"), ended.stderr


def test_the_folder_has_what_was_printed_the_command_the_commit_and_the_versions(
    config, monkeypatch
):
    ends(config, monkeypatch, RunError("learner step 3: the learner died"))
    printed = Path("runs/demo/logs/terminal.log").read_text(encoding="utf-8")
    assert "error: learner step 3: the learner died" in printed
    [start] = map(
        json.loads, Path("runs/demo/starts.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert start["command"] == sys.argv and start["folder"] == str(config.parent)
    versions = start["versions"]
    assert all(versions[name] for name in ("dorado-rl", "torch", "vllm", "ray")), versions
    assert start["versions"]["ray"] == ray.__version__
    assert start["commit"] is None or len(start["commit"]) == 40
    assert start["project"] == {"commit": None, "changed": None}
