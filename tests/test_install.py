"""`pip install .` in a new virtual environment of the oldest and newest Python, without lock and extras."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("envs", "reward", "rl", "rollout", "trainer")


def interpreter(version: str) -> str | None:
    """An interpreter of this version that runs, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    paths = [sys.executable, shutil.which(f"python{version}")]
    paths += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"))]
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, paths):
        said = subprocess.run([path, "-c", ask], capture_output=True, text=True, encoding="utf-8")
        if said.returncode == 0 and said.stdout.strip() == version:
            return path
    return None


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_a_plain_installation_lists_checks_and_begins_environments(version, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    # A copy: a build leaves folders behind in the tree.
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", tree]
    subprocess.run(pip, check=True, timeout=600)

    def dorado(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [tmp_path / "venv" / "bin" / "dorado", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=120, encoding="utf-8"
        )

    assert dorado("--version").stdout.startswith("dorado ")
    assert "calculator" in dorado("env", "list").stdout
    assert dorado("env", "new", "my_world").returncode == 0
    for name in ("calculator", "my_world/my_world/environment.py:MyWorld"):
        assert dorado("env", "check", name).returncode == 0
    checked = dorado("train", "quickstart.toml", "--dry-run")
    assert checked.returncode == 0 and 'name = "quickstart"' in checked.stdout
    assert f"config: {tmp_path}/venv/share/dorado/configs/quickstart.toml" in checked.stderr
    assert (tmp_path / "venv/share/dorado/configs/sim/dora_testbed.toml").is_file()
    refused = dorado("sft", str(ROOT / "configs" / "quickstart.toml"))
    assert refused.returncode == 2 and "needs torch, which is not installed" in refused.stderr
