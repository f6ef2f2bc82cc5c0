"""Commands of dorado for benchmarks that are made of several, and what their runs have measured."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def dorado(*arguments: str) -> None:
    """Run a command to its end. Ends this process with a sentence where it fails."""
    done = subprocess.run([sys.executable, "-m", "rl", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"dorado {' '.join(arguments)} ended with exit code {done.returncode}")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none where there is no run."""
    file = run / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]
