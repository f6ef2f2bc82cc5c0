# `make quickstart` and `make test` are all a newcomer needs: each sets up .venv first if it has to.
PY := .venv/bin/python
STAMP := .venv/.installed
.PHONY: quickstart test test-fast test-parallel test-smoke test-engines test-runs test-rest test-all check map setup clean
# One after the other: each part keeps two cores busy.
.NOTPARALLEL:

# Every test is in exactly one of these four (docs/testing.md); tests/test_suite.py holds that.
PARALLEL := not (engine or run or slow or network or compiler)
SMOKE := smoke
ENGINES := (engine or slow or network or compiler) and not (run or smoke)
RUNS := run and not smoke
# Of the first one what starts no process and computes little.
FAST := $(PARALLEL) and not (process or heavy)
PYTEST := .venv/bin/pytest --durations=25
# To collect the whole suite takes as long as to start an engine: the files that are not marked as a whole, and those
# that name a marker anywhere.
WITHOUT = $(if $(findstring tests/,$(ARGS)),,$(shell grep -LE '^pytestmark.*mark\.($(1))\b' tests/test_*.py))
NAMING = $(if $(findstring tests/,$(ARGS)),,$(shell grep -lE 'mark\.($(1))\b' tests/test_*.py))
# A selection of ARGS that has no test of a kind is no failure (pytest's exit status 5).
OR_NONE := || [ $$? -eq 5 ]

quickstart: setup
	.venv/bin/dorado train configs/quickstart.toml $(ARGS)

test: test-parallel test-smoke

test-fast: setup
	$(PYTEST) -m "$(FAST)" $(call WITHOUT,engine|run|slow|network|compiler|process|heavy) --numprocesses=2 --dist=loadfile $(ARGS) $(OR_NONE)

test-parallel: setup
	$(PYTEST) -m "$(PARALLEL)" --numprocesses=2 --dist=loadfile $(ARGS) $(OR_NONE)

test-smoke: setup
	$(PYTEST) -m "$(SMOKE)" $(call NAMING,smoke) $(ARGS) $(OR_NONE)

test-engines: setup
	$(PYTEST) -m "$(ENGINES)" $(call NAMING,engine|slow|network|compiler) --numprocesses=2 --dist=loadfile $(ARGS) $(OR_NONE)

# One at a time: Ray's workers are at a low priority, and whatever runs beside them takes the cores.
test-runs: setup
	$(PYTEST) -m "$(RUNS)" $(call NAMING,run) $(ARGS) $(OR_NONE)

test-rest: test-engines test-runs

test-all: test test-rest

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

map: setup
	$(PY) scripts/map.py

setup: $(STAMP)

$(STAMP): requirements/cpu.lock pyproject.toml scripts/setup.sh
	bash scripts/setup.sh

clean:
	rm -rf .venv
