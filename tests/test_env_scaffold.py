"""`dorado env new` writes a package that passes its check, and its own test, as it is."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from envs.registry import find_env
from rl.cli import app
from rl.env_tools.check.run import check

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent


def new(*arguments: str):
    return CliRunner().invoke(app, ["env", "new", *arguments])


@pytest.fixture
def package(tmp_path: Path) -> Path:
    done = new("box-mover", "--in", str(tmp_path))
    assert done.exit_code == 0, done.output
    return tmp_path / "box-mover"


def test_the_new_environment_passes_its_check(package):
    sheet = check(f"{package}/box_mover/environment.py:BoxMover")
    assert {one.outcome for one in sheet.findings} == {"pass"}, str(sheet)


@pytest.mark.slow  # a pytest of its own, and in it three checks
def test_pytest_in_the_new_package_runs_the_check_at_every_difficulty(package):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        capture_output=True,
        text=True,
        cwd=package,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=200,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_pytest_in_the_new_package_fails_with_the_sentence_where_the_environment_is_broken(package):
    file = package / "box_mover" / "environment.py"
    file.write_text(
        file.read_text(encoding="utf-8").replace("float(self.boxes == wanted)", "1.0"),
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x"],
        capture_output=True,
        text=True,
        cwd=package,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=200,
        encoding="utf-8",
    )
    assert done.returncode == 1
    assert "an answer without a word scores {'solved': 1.0}" in done.stdout


def test_the_entry_point_names_the_class(package):
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))
    points = project["project"]["entry-points"]["dorado.envs"]
    assert points == {"box-mover": "box_mover.environment:BoxMover"}
    assert find_env(f"{package}/box_mover/environment.py:BoxMover").name == "box-mover"
    assert "$" not in "".join(
        file.read_text(encoding="utf-8") for file in package.rglob("*.*") if file.is_file()
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Box", "'Box' has to be small letters, digits, - and _"),
        ("../box", "has to be small letters"),
        ("calculator", "'calculator' is the name of something else already"),
        ("json", "is the name of something else already"),
        ("envs", "is the name of something else already"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(tmp_path, name, sentence):
    done = new(name, "--in", str(tmp_path))
    assert done.exit_code == 2
    assert sentence in done.output
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(package):
    done = new("box-mover", "--in", str(package.parent))
    assert done.exit_code == 2
    assert f"{package} exists already" in done.output


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = new("box-mover", "--in", str(tmp_path / "file"))
    assert done.exit_code == 2
    assert "cannot be written: Not a directory" in done.output
