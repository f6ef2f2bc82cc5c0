"""The suite itself: its parts in the Makefile, how long a test may take, and what it may leave behind."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression
from markers import MARKERS, MAY_TAKE_LONGER

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
PARTS = ("PARALLEL", "SMOKE", "ENGINES", "RUNS")


def test_every_test_is_in_exactly_one_part_of_the_makefile(request):
    """Of those that were collected; in `make test` that is the whole suite."""
    lines = re.findall(
        r"^([A-Z]+) := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    parts = {name: Expression.compile(value) for name, value in lines if name in PARTS}
    assert tuple(parts) == PARTS
    for test, own in request.config.stash[MARKERS].items():
        has = own.__contains__
        inside = [n for n, part in parts.items() if part.evaluate(lambda m, has=has, **_: has(m))]
        assert len(inside) == 1, f"{test} is in {inside}"
        assert "smoke" not in own or own & {"engine", "run"}, f"{test} starts nothing real"
        for name in own & {"engine", "run", "slow", "network", "compiler", "smoke"}:
            assert name in _named(test.partition("::")[0]), f"{test}: make finds no mark.{name}"


@cache
def _named(file: str) -> set[str]:
    """The markers whose names stand in a test's file."""
    return set(re.findall(r"mark\.(\w+)", (ROOT / file).read_text(encoding="utf-8")))


def test_the_parts_are_what_make_and_ci_run():
    makefile, ci = (
        (ROOT / "Makefile").read_text(encoding="utf-8"),
        (ROOT / ".ci" / "run").read_text(encoding="utf-8"),
    )
    targets = dict(re.findall(r"^(test[\w-]*): (.*)\n", makefile, re.MULTILINE))
    assert targets["test"].split() == ["test-parallel", "test-smoke"]
    assert targets["test-rest"].split() == ["test-engines", "test-runs"]
    assert targets["test-all"].split() == ["test", "test-rest"]
    used = dict(re.findall(r"^test-(\w+): setup\n.*-m \"\$\((\w+)\)\"", makefile, re.MULTILINE))
    parts = {name.lower(): name for name in PARTS}
    assert used == {"fast": "FAST", **parts}
    assert "FAST := $(PARALLEL) and not (process or heavy)\n" in makefile, (
        "the fast ones are some of these"
    )
    assert re.findall(r"make [-\w ]*\b(check|test[\w-]*)", ci) == ["check", "test", "test-rest"]


PLANTED = """
import os, random, signal, subprocess, sys, threading, time
import pytest

def work():
    end = time.thread_time() + 1
    while time.thread_time() < end: pass

@pytest.fixture
def own(): work()

@pytest.fixture(scope="module")
def shared(): work()

def test_long(): work()
@pytest.mark.slow
def test_long_and_marked(): work()
def test_own_fixture(own): pass
def test_shared_fixture(shared): pass
@pytest.mark.parametrize("n", [1, 2])
def test_draws(n): assert random.random() == random.Random(0).random()

def test_variable(): os.environ["DORADO_PLANTED"] = "1"
def test_folder(): os.chdir("/")
def test_handler(): signal.signal(signal.SIGTERM, lambda *_: None)
def test_recursion(): sys.setrecursionlimit(4321)
def test_process(): subprocess.Popen(["sleep", "9"])
def test_dtype():
    import torch
    torch.set_default_dtype(torch.float64)
def test_grad():
    import torch
    torch.set_grad_enabled(False)
def test_threads():
    import torch
    torch.set_num_threads(2)
def test_threads_again():
    import torch
    assert torch.get_num_threads() == 1
def test_clean(monkeypatch, tmp_path):
    monkeypatch.setenv("DORADO_CLEAN", "1")
    monkeypatch.chdir(tmp_path)
    subprocess.run(["true"])
# The last one: what its thread starts would not be another test's.
def test_thread(): threading.Thread(target=time.sleep, args=(9,), name="planted").start()
"""
FAULTS = {
    "test_long": "it needs one of the markers",
    "test_own_fixture": "it needs one of the markers",
    "test_variable": "environment variable DORADO_PLANTED: None before, '1' after",
    "test_folder": "the working directory",
    "test_handler": "the handler of SIGTERM",
    "test_recursion": "the recursion limit: 1000 before, 4321 after",
    "test_thread": "planted",
    "test_process": "sleep 9",
    "test_dtype": "torch's default dtype: torch.float32 before, torch.float64 after",
    "test_grad": "torch's grad mode: True before, False after",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pytest says of each planted test that fails, in a process of its own."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "test_planted.py").write_text("import torch\n" + PLANTED, encoding="utf-8")
    markers = "".join(f"\n    {name}" for name in MAY_TAKE_LONGER)
    (folder / "pytest.ini").write_text(f"[pytest]\nmarkers ={markers}\n", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "isolation", "-p", "markers"),
            *("-p", "no:randomly", "-p", "no:cacheprovider", "--tb=short", "-rN"),
        ],
        cwd=folder,
        env=environment
        | {
            "PYTHONPATH": str(ROOT / "tests"),
            "CI": "true",
            "DORADO_TEST_SECONDS": "0.8",
            "DORADO_TEST_GRACE": "0.1",
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    blocks = re.split(r"^_+ (?:ERROR at \w+ of )?(test_\w+) _+$", done.stdout, flags=re.MULTILINE)
    return dict(zip(blocks[1::2], blocks[2::2], strict=True))


def test_only_what_takes_long_or_leaves_something_behind_fails(said):
    assert said.keys() == FAULTS.keys()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(said, fault):
    assert FAULTS[fault] in said[fault]
