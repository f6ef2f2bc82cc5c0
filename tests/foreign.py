"""Interpreters of their own for foreign packages, made once per machine."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dorado-tests"
# What pip says where it reaches no index at all.
UNREACHABLE = ("from versions: none", "connection", "timed out", "resolve", "unreachable")


def foreign_python(requirements: Sequence[str], without_dependencies: Sequence[str] = ()) -> str:
    """The interpreter of a virtual environment with these packages; skips where no index is reached."""
    wanted = repr((sys.version_info[:2], tuple(requirements), tuple(without_dependencies)))
    folder = CACHE / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    python = folder / "bin" / "python"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "ready").exists():
            return str(python)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        _install(python, [*requirements])
        if without_dependencies:
            _install(python, ["--no-deps", *without_dependencies])
        (folder / "ready").touch()
    return str(python)


def _install(python: Path, arguments: Sequence[str]) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    command = [*pip, "install", "--quiet", "--no-compile", "--retries", "1", "--timeout", "20"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, encoding="utf-8")
    if done.returncode == 0:
        return
    last = done.stderr.strip().splitlines()[-1]
    if any(word in done.stderr.lower() for word in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {last}")
    pytest.fail(f"pip install {' '.join(arguments)}: {last}")
