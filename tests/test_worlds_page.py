"""docs/worlds.md, followed literally: a domain of one's own, from its file to the start of its training."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "worlds.md").read_text(encoding="utf-8").partition("## Your own domain")[2]


def test_a_domain_of_ones_own_is_checked_played_packed_and_could_be_trained_on(tmp_path):
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
    domain, run = (body for kind, body in fences if kind == "toml")
    (tmp_path / "kiosk.toml").write_text(domain, encoding="utf-8")
    name = run.splitlines()[0].removeprefix("# ")
    (tmp_path / name).write_text(run, encoding="utf-8")
    commands = [line for kind, body in fences if not kind for line in body.splitlines()]
    assert [c.split()[1:3] for c in commands] == [
        ["env", "check"], ["env", "play"], ["env", "generate"], ["train", name]
    ]  # fmt: skip
    said = [followed(tmp_path, command) for command in commands]
    assert "0 broken" in said[0] and "rewards: " in said[1] and "1000 tasks" in said[2]
    assert "packs/kiosk" in said[3]


def followed(folder: Path, command: str) -> str:
    """The output of a command as a reader types it; a training is checked and not begun."""
    words = shlex.split(command)[1:] + (["--dry-run"] if " train " in command else [])
    done = subprocess.run(
        [sys.executable, "-m", "rl", *words],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        input=":quit\n" if " play " in command else "",
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "COLUMNS": "200"},
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
