"""A judge that ends its process below Python is named, with the line where it did."""

import subprocess
import sys
from pathlib import Path

import pytest

from rl.actors.judge_crash import JudgeCrashes, crash_in
from rl.env_table import EnvTable

WORDS = """\
an earlier line
Fatal Python error: Segmentation fault

Current thread 0x00007f3c (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/home/ada/own/judges.py", line 7 in crash
  File "/work/reward/score.py", line 71 in ask
  File "/usr/lib/python3.11/asyncio/events.py", line 80 in _run

Extension modules: numpy
"""
JUDGE = """
import ctypes

async def crash(task, trajectory):
    ctypes.string_at(0)
    return {"fine": 1.0}
"""
CONTROLLER = """
import asyncio, own_judges
from rl.actors.judge_crash import last_words_to_log
from rl.actors.judge_loop import JudgeLoop

async def main():
    await JudgeLoop(60.0).run(own_judges.crash(None, None))

last_words_to_log()
asyncio.run(main())
"""
OWN = "in judge {!r} (/home/ada/own/judges.py, line 7)"
INNERMOST = "in string_at (/usr/lib/python3.11/ctypes/__init__.py, line 519)"


@pytest.mark.parametrize(
    ("judges", "said"),
    [
        (("exact", "own.judges:crash"), OWN.format("own.judges:crash")),
        (("judges:crash",), OWN.format("judges:crash")),
        (("judges:other", "es:crash"), INNERMOST),
        ((), INNERMOST),
    ],
)
def test_the_judge_on_the_stack_is_named(judges, said):
    assert crash_in(WORDS, judges) == f"a segmentation fault {said}"


def test_a_judge_of_an_entry_point_is_found_by_its_place():
    words = WORDS.replace("/home/ada/own/judges.py", "/site-packages/reward/format.py")
    found = crash_in(words.replace("in crash", "in well_formed"), ("exact", "well_formed"))
    assert "in judge 'well_formed' (/site-packages/reward/format.py, line 7)" in found


def test_the_last_of_several_errors_is_told_once(tmp_path):
    log = tmp_path / "controller-0.log"
    log.write_text(WORDS.replace("crash", "other") + WORDS, encoding="utf-8")
    table = EnvTable(id="calculator", judges=("judges:other", "judges:crash"))
    crashes = JudgeCrashes(tmp_path, [table])
    assert "in judge 'judges:crash'" in crashes.why("controller-0")
    assert crashes.why("controller-0") == "" == crashes.why("controller-1")
    with log.open("a", encoding="utf-8") as more:
        more.write("started anew, and killed\n")
    assert crashes.why("controller-0") == ""


@pytest.mark.process
def test_the_words_of_a_real_segmentation_fault_name_the_judge(tmp_path):
    (tmp_path / "own_judges.py").write_text(JUDGE, encoding="utf-8")
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", CONTROLLER],
        env={"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin"},
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert ended.returncode == -11
    found = crash_in(ended.stderr, ("own_judges:crash",))
    assert (
        f"a segmentation fault in judge 'own_judges:crash' ({tmp_path}/own_judges.py, line 5)"
        == found
    )
