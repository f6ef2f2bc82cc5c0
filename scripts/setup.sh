#!/usr/bin/env bash
# Makes .venv from the pinned lock. No resolver runs: every package is named in requirements/cpu.lock,
# so the install is the same everywhere and no CUDA package can slip in.
set -euo pipefail
cd "$(dirname "$0")/.."

# The lock's packages have wheels for these.
supported() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2>/dev/null
}
python=""
for candidate in python3.11 python3.12 python3.13 python3; do
    if supported "$candidate"; then
        python=$candidate
        break
    fi
done
if ! supported .venv/bin/python; then
    if [ -z "$python" ]; then
        echo "setup: Python 3.11, 3.12 or 3.13 is needed (requirements/cpu.lock is made for them), and none of" \
            "python3.11, python3.12, python3.13 and python3 is one" >&2
        exit 2
    fi
    rm -rf .venv
    "$python" -m venv .venv
fi

echo "setup: installing requirements/cpu.lock into .venv (a minute or two, once)"
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-compile)
# The CPU build of torch is not on PyPI. Where pip is configured to find it, take it from there; else
# from PyTorch's own index of CPU builds.
torch=$(grep '^torch==' requirements/cpu.lock)
if ! .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit('torch==' + m.version('torch') != '$torch')" 2>/dev/null; then
    "${pip[@]}" "$torch" 2>/dev/null || "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch"
fi
"${pip[@]}" -r requirements/cpu.lock
"${pip[@]}" --no-build-isolation -e .
# On all cores, where pip would take one: half a minute less on two. Some packages bring templates that do not compile.
.venv/bin/python -m compileall -qq -j 0 .venv/lib || true
touch .venv/.installed
if ! command -v bwrap >/dev/null; then
    echo "setup: bubblewrap is not installed; sandboxes take a fallback (docs/sandbox.md). To get it: apt-get install bubblewrap"
fi
