"""Commands of dorado for benchmarks that are made of several, which show what these say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def dorado(*arguments: str) -> None:
    """Run a command to its end. Ends this process with a sentence where it fails."""
    done = subprocess.run([sys.executable, "-m", "rl", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"dorado {' '.join(arguments)} ended with exit code {done.returncode}")
