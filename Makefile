# `make quickstart` and `make test` are all a newcomer needs: each sets up .venv first if it has to.
PY := .venv/bin/python
STAMP := .venv/.installed
.PHONY: quickstart test test-fast check map setup clean

quickstart: setup
	.venv/bin/dorado train configs/quickstart.toml $(ARGS)

test: setup
	.venv/bin/pytest $(ARGS)

test-fast: setup
	.venv/bin/pytest -m "not engine" $(ARGS)

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
