"""The guide of docs/environments.md, followed literally: its files, its commands, its figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rl.config import load_config
from rl.env_tools.check.report import PROMISES
from rl.env_tools.check.run import check
from rl.preflight.check import check_run

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files(text: str) -> dict[str, str]:
    """The fenced files of a text; the first line of each names it."""
    found: dict[str, str] = {}
    for _, body in FENCE.findall(text):
        named = re.match(r"# (\S+\.(?:py|toml))\n", body)
        if named is not None:
            found[named[1]] = body
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, body in files(GUIDE).items():
        (tmp_path / name).write_text(body, encoding="utf-8")
    return tmp_path


def dorado(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """The command as a reader types it, in the reader's folder."""
    return subprocess.run(
        [sys.executable, "-m", "rl", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"},
        **options,
    )


def test_the_guide_has_its_two_files_and_the_readme_the_same_environment():
    assert list(files(GUIDE)) == ["doubling.py", "doubling.toml"]
    assert (
        files((ROOT / "README.md").read_text(encoding="utf-8"))["doubling.py"]
        == files(GUIDE)["doubling.py"]
    )


def test_the_environment_has_about_fifteen_lines():
    body = files(GUIDE)["doubling.py"].partition("class Doubling")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 17


def test_the_environment_of_the_guide_keeps_every_promise(folder):
    done = dorado(folder, "env", "check", "doubling.py:Doubling")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(PROMISES)} of {len(PROMISES)} promises kept" in done.stdout


def test_the_broken_one_of_the_guide_reads_as_the_guide_says(folder):
    file = folder / "doubling.py"
    file.write_text(
        file.read_text(encoding="utf-8").replace("float(self.answer == str(2 * self.n))", "1.0"),
        encoding="utf-8",
    )
    sheet = check(f"{file}:Doubling")
    shown = next(body for _, body in FENCE.findall(GUIDE) if body.startswith("FAIL"))
    assert [one.check for one in sheet.failures] == ["idle"]
    assert f"FAIL idle {sheet.failures[0].sentence}" == " ".join(shown.split())


def test_it_is_played_as_the_guide_says(folder):
    done = dorado(folder, "env", "play", "doubling.py:Doubling", input="double(n=21)\n:quit\n")
    assert "tool: 42\n" in done.stdout and "rewards: solved 0" in done.stdout


def test_the_run_of_the_guide_could_start(folder, monkeypatch):
    monkeypatch.chdir("/")
    config = load_config(folder / "doubling.toml", ["--cluster.weights_dir", str(folder)])
    check_run(config)
    assert config.steps == 10


def test_the_guides_table_has_every_promise():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", GUIDE.partition("## The protocol")[0], re.M)
    assert dict(rows) == PROMISES


@pytest.mark.run
@pytest.mark.timeout(600)
def test_the_run_of_the_guide_trains_for_ten_steps(folder):
    done = dorado(folder, "train", "doubling.toml", timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 10/10" in done.stdout and "│ doubling.py:Doubling │" in done.stdout
    assert (
        len((folder / "runs/doubling/metrics.jsonl").read_text(encoding="utf-8").splitlines()) >= 10
    )
