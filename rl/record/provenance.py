"""Provenance of a run, or of its part since it was resumed: one line of starts.jsonl in its folder.

Who asks how a result came about reads the command line, the commit of the code and the versions of what it
stands on there. Nothing of it is read back by a run.
"""

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "dorado-rl",
    "torch",
    "vllm",
    "ray",
    "transformers",
    "tokenizers",
    "safetensors",
    "wandb",
)
GIT_SECONDS = 10.0


def provenance() -> Mapping[str, object]:
    """Describe this process, e.g. `{"command": ["dorado", "train", …], "commit": "1f3a…", "changed": false}`.

    commit, changed: of Dorado's checkout, and true where files of it differ from the commit; project: the
    same of the folder that the command was given in. None where there is no git checkout.
    """
    return {
        "time": time.time(),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        **_commit(Path(__file__).parent),
        "project": _commit(Path.cwd()),
    }


def _version(package: str) -> str | None:
    """The version of a package; vLLM's build for CPU machines has a name of its own."""
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _commit(folder: Path) -> dict[str, str | bool | None]:
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit or None, "changed": None if changed is None else bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command in a folder; None where it fails, or git is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
