"""Plugins looked at in a process of their own: whatever their modules do is a sentence."""

import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from envs.registry import UnknownEnv, find_env
from reward.registry import UnknownJudge, find_judge
from rl.cli import app
from rl.config_error import ConfigError
from rl.env_table import DeadlineConfig, EnvTable
from rl.env_tools.listing import installed
from rl.plugin_check import check_plugins

pytestmark = pytest.mark.process

QUICK = DeadlineConfig(reset_seconds=0.5)
WORLD = """
import os, signal, sys, time
from envs.env import Env

class World(Env):
    name = "world"
    def sample(self, rng): return {"n": rng.random()}
    async def reset(self, task): return []
    async def score(self): return {}
    {body}
"""
JUDGE = """
async def kind(task, trajectory):
    return {}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("rl.plugin_check.ACT_SECONDS", 1.0)


def table(folder: Path, source: str, **more) -> EnvTable:
    (folder / "world.py").write_text(source, encoding="utf-8")
    return EnvTable(id=f"{folder}/world.py:World", deadlines=QUICK, **more)


def world(body: str) -> str:
    return WORLD.replace("{body}", body)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import sys; sys.exit(2)", "world.py cannot be imported: SystemExit: 2"),
        ("raise KeyboardInterrupt", "world.py cannot be imported: KeyboardInterrupt"),
        ("class P(BaseException): pass\nraise P('rust')", "cannot be imported: P: rust"),
        ("raise ValueError('caf\\udce9')", r"cannot be imported: ValueError: caf\udce9"),
        (
            "import os; os._exit(3)",
            "importing it ended the process with exit status 3: let it raise in place of exiting",
        ),
        (
            "import os; print('no licence', flush=True); os._exit(0)",
            "ended the process with exit status 0: let it raise in place of exiting (no licence)",
        ),
        ("import os; os.kill(os.getpid(), 9)", "importing it ended the process by SIGKILL"),
        (
            "import threading; threading.Event().wait()",
            "importing it took over 1 s; if it is only slow, raise its deadlines.reset_seconds",
        ),
        (
            world("def __init__(self, config): os._exit(4)"),
            "making it ended the process with exit status 4",
        ),
        (world("def __init__(self, config): 1 / 0"), "it cannot be made: ZeroDivisionError"),
        (world("def probe(self): time.sleep(99)"), "its probe() took over 1 s"),
        (world("def probe(self): sys.exit('no')"), "its probe() raises SystemExit: no"),
        (world("def probe(self): raise KeyError('k')"), "probe() raises KeyError: 'k'"),
        (
            world("def probe(self): raise ValueError('no server')"),
            "env 'world.py:World': no server",
        ),
        (
            world("def sample(self, rng): return {'n': rng.stones()}"),
            "tasks('train') raises AttributeError: 'Random' object has no attribute 'stones'",
        ),
        (
            world("sample = Env.sample"),
            "World has neither sample() nor tasks(): write `def sample(",
        ),
        (world("def sample(self, rng): time.sleep(99)"), "drawing a task took over 1 s"),
        (
            world("def tasks(self, split, seed): return iter(())"),
            "tasks('train') and tasks('heldout') give no task",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_sentence(tmp_path, source, sentence):
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        check_plugins([table(tmp_path, source)])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert "world.py:World" in str(caught.value)
    assert time.monotonic() - start < 20


def test_an_import_that_is_at_work_has_longer_and_is_said(tmp_path, monkeypatch, capfd):
    """As on a busy machine; one that goes on for ever has its end too."""
    monkeypatch.setattr("rl.plugin_check.SAID_SECONDS", 0.5)
    works = "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass\n"
    check_plugins([table(tmp_path, works.format(2.5) + world("pass"))])
    said = capfd.readouterr().err
    assert said.count("importing it has taken 0.5 s; it may take 1 s, and 120 s if") == 1
    monkeypatch.setattr("rl.plugin_check.MOST_SECONDS", 2.0)
    with pytest.raises(ConfigError, match="importing it took over 2 s; if it is only slow"):
        check_plugins([table(tmp_path, works.format(99))])


def test_a_plugin_that_works_may_say_what_it_likes_and_leaves_no_process(tmp_path, capfd):
    source = (
        "import subprocess, sys, threading\nprint('hello')\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        "threading.Thread(target=threading.Event().wait).start()\n" + world("pass")
    )
    before = {one.pid for one in psutil.Process().children(recursive=True)}
    check_plugins([table(tmp_path, source), EnvTable(id="calculator", judges=("exact",))])
    assert capfd.readouterr() == ("", "")
    assert {one.pid for one in psutil.Process().children(recursive=True)} <= before


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import os; os._exit(3)", "judges: 'judges_a:kind': importing it ended the process with"),
        ("import sys; sys.exit(2)", "'judges_a:kind' cannot be imported: SystemExit: 2"),
        ("import time; time.sleep(99)", "judges: 'judges_a:kind': importing it took over 1 s"),
        (JUDGE.replace("async ", ""), "judge 'judges_a:kind' is not async"),
    ],
)
def test_a_judge_that_cannot_be_used_is_one_sentence(tmp_path, monkeypatch, source, sentence):
    (tmp_path / "judges_a.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_plugins([EnvTable(id="calculator", judges=("judges_a:kind",), deadlines=QUICK)])
    assert sentence in str(caught.value) and "env 'calculator'" in str(caught.value)


def package(folder: Path, name: str, **groups: str) -> None:
    """Make an installed package of a name, with entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8"
    )
    lines = [f"[dorado.{group}]\n{entry}\n" for group, entry in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def test_a_name_that_two_packages_register_is_refused_with_both(tmp_path, monkeypatch):
    package(tmp_path, "one", envs="maze = one:Maze", rewards="polite = one:polite")
    package(tmp_path, "two", envs="maze = two:Maze", rewards="polite = two:polite")
    monkeypatch.syspath_prepend(tmp_path)
    both = r"'(maze|polite)' is registered by two packages: (one|two) \(.*, (one|two) \("
    with pytest.raises(UnknownEnv, match=f"environment {both}"):
        find_env("maze")
    with pytest.raises(UnknownJudge, match=f"judge {both}"):
        find_judge("polite")
    with pytest.raises(ConfigError, match=both):
        check_plugins([EnvTable(id="maze")])
    with pytest.raises(ConfigError, match=both):
        check_plugins([EnvTable(id="calculator", judges=("polite",))])


def test_a_package_cannot_take_a_built_in_name(tmp_path, monkeypatch):
    package(tmp_path, "other", envs="calculator = other:C", rewards="exact = other:exact")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownEnv, match=r"dorado-rl \(envs.builtin.calculator:Calculator\)"):
        find_env("calculator")
    with pytest.raises(UnknownJudge, match=r"other \(other:exact\)"):
        find_judge("exact")


def test_one_thing_registered_twice_is_one_thing(tmp_path, monkeypatch):
    """As by an earlier name of a package whose metadata were left behind."""
    package(tmp_path, "older", envs="calculator = envs.builtin.calculator:Calculator")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_env("calculator").name == "calculator"


def test_the_list_goes_on_after_a_plugin_that_ends_its_process(tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text("import os; os._exit(3)", encoding="utf-8")
    (tmp_path / "working.py").write_text(
        'from envs.env import Env\nclass World(Env):\n    """A world.\n\n    More."""\n    name = "w"\n',
        encoding="utf-8",
    )
    package(tmp_path, "ends", envs="a_ending = ending:World")
    package(tmp_path, "works", envs="b_working = working:World")
    monkeypatch.syspath_prepend(tmp_path)
    found = {one["name"]: one for one in installed()}
    assert "importing it ended the process with exit status 3" in found["a_ending"]["summary"]
    assert found["a_ending"]["summary"].startswith("cannot be used: importing it")
    assert (found["b_working"]["package"], found["b_working"]["summary"]) == ("works", "A world.")
    assert found["calculator"]["package"] == "dorado-rl"


def test_a_dry_run_with_a_plugin_that_ends_its_process_is_bad_input(tmp_path):
    (tmp_path / "world.py").write_text("import os; os._exit(0)", encoding="utf-8")
    (tmp_path / "run.toml").write_text(
        'name = "t"\n[model.init]\n[[env]]\nid = "world.py:World"\n[env.deadlines]\nreset_seconds = 1',
        encoding="utf-8",
    )
    done = CliRunner().invoke(app, ["train", str(tmp_path / "run.toml"), "--dry-run"])
    assert done.exit_code != 0
    said = str(done.exception or "") + done.output
    assert "importing it ended the process with exit status 0" in said
