# Every recipe sets itself up; nothing here needs more than Python 3.11, make and a C compiler.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup check test demo bench torture

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "stemma needs Python 3.11 (make PYTHON=...)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,demo,dev]'
	@touch $(READY)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house.py

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow"

demo: $(READY)
	$(BIN)/stemma demo $(if $(PHOTOS),--photos "$(PHOTOS)")

bench: $(READY)
	$(BIN)/stemma bench all --json

torture: $(READY)
	$(BIN)/python -m pytest -q tests/torture tests/simulation -m "slow or not slow"
