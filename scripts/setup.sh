#!/usr/bin/env bash
# Makes .venv from the pinned lock. No resolver runs: every package is named in requirements/cpu.lock,
# so the install is the same everywhere and no CUDA package can slip in.
set -euo pipefail
cd "$(dirname "$0")/.."

python=""
for candidate in python3.11 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup: Python 3.11 is needed (the lock is made for it), and neither python3.11 nor python3 is one" >&2
    exit 2
fi
if ! [ -x .venv/bin/python ] || ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    rm -rf .venv
    "$python" -m venv .venv
fi

echo "setup: installing requirements/cpu.lock into .venv (about two minutes, once)"
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps)
# The CPU build of torch is not on PyPI. Where pip is configured to find it, take it from there; else
# from PyTorch's own index of CPU builds.
torch=$(grep '^torch==' requirements/cpu.lock)
if ! .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit('torch==' + m.version('torch') != '$torch')" 2>/dev/null; then
    "${pip[@]}" "$torch" 2>/dev/null || "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch"
fi
"${pip[@]}" -r requirements/cpu.lock
"${pip[@]}" --no-build-isolation -e .
touch .venv/.installed
if ! command -v bwrap >/dev/null; then
    echo "setup: bubblewrap is not installed; sandboxes take a fallback (docs/sandbox.md). To get it: apt-get install bubblewrap"
fi
