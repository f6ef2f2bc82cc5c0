"""Makes an interpreter that has TRL: a virtual environment in a cache folder, by `peer/requirements.txt`.

Nothing of it enters Dorado's own environment or its lock. No resolver runs: every package is named.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


class NoEnvironment(Exception):
    """TRL could not be installed; the message is one sentence."""


def default_cache() -> Path:
    """The user's cache directory, and in it a folder of ours."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dorado" / "against_trl"
    )


def trl_python(cache: Path) -> Path:
    """Return the interpreter that has TRL. The first call for these requirements installs it (minutes).

    Raises NoEnvironment.
    """
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / f"trl-{key}"
    python, done = folder / "bin" / "python", folder / "done"
    if done.exists():
        return python
    print(f"installing TRL into {folder} (a minute or two, once)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv = [sys.executable, "-m", "venv", str(folder)]
    if subprocess.run(venv, stdout=sys.stderr, check=False).returncode:
        raise NoEnvironment(f"{' '.join(venv)} failed: is Python's venv module whole here?")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    pip += ["--quiet"]
    torch = next(
        line
        for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()
        if line[:7] == "torch=="
    )
    for packages, hint in (
        ([torch], "; its index is the one that scripts/setup.sh names: set PIP_EXTRA_INDEX_URL"),
        (["-r", str(REQUIREMENTS)], ""),
    ):
        made = subprocess.run(
            [*pip, *packages], stderr=subprocess.PIPE, encoding="utf-8", check=False
        )
        if made.returncode:
            said = next((x for x in made.stderr.splitlines() if "ERROR" in x), "pip failed")
            raise NoEnvironment(f"{' '.join(packages)} cannot be installed: {said}{hint}")
    done.touch()
    return python
