"""Policies that take a minute to train, kept between test processes as long as no code of ours changes."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Kept beside the one that is made.
MOST = 3
PACKAGES = ("rl", "rollout", "envs", "reward", "trainer")


def kept(cache: pytest.Cache, what: str, make: Callable[[Path], None], target: Path) -> Path:
    """Put at `target`, which does not exist, the folder that `make` writes; `what`: all that it depends on
    but our code. Another process that wants the same waits, and copies what it finds."""
    folder = Path(cache.mkdir("policies"))
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = folder / _digest(what)
        if not found.exists():
            made = target.with_name(f"{target.name}.made")
            make(made)
            passing = folder / f".{found.name}"
            shutil.rmtree(passing, ignore_errors=True)
            shutil.copytree(made, passing)
            # The newest ones: each change of our code makes others.
            for old in sorted(folder.glob("[0-9a-f]*"), key=lambda one: one.stat().st_mtime)[
                :-MOST
            ]:
                shutil.rmtree(old, ignore_errors=True)
            passing.rename(found)
        shutil.copytree(found, target)
    return target


def _digest(what: str) -> str:
    digest = hashlib.sha256(what.encode())
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    digest.update((ROOT / "requirements" / "cpu.lock").read_bytes())
    return digest.hexdigest()[:16]
