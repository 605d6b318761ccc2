# Two commands do everything on a clean machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Test workers run one thread each; more would fight over the cores.
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: quickstart test check setup format lint types imports unit wheel smoke clean

quickstart: $(READY)  ## the main job on the embedded model and data, offline; ends with a report
	$(BIN)/sinkprune run quickstart

test: $(READY) unit  ## the tests

setup: $(READY)  ## the virtual environment only

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

check: $(READY) lint types imports unit wheel smoke  ## what CI runs

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/pyright

imports: $(READY)
	$(BIN)/lint-imports

unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

wheel: $(READY)  ## sdist, from it the wheel, and the installed command in an empty folder
	$(BIN)/python scripts/check_wheel.py

smoke: $(READY)  ## the quickstart recipe with everything made small
	$(BIN)/python scripts/smoke_quickstart.py

clean:
	rm -rf dist build .pytest_cache .ruff_cache .hypothesis
