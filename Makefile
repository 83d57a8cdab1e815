# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs in .venv of this checkout; only Python 3.11+, pip, make and git are assumed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PACKS ?= ../shared/data
# Files of tests are spread over the cores. One file in one process: make test ARGS="tests/core/test_rng.py -n 0"
# Compiled modules are kept whatever the shell says: the many processes that tests start would each compile all of rekindle.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo results-small calibrate gpu-check test test-all torture audit lint types format docs examples lock clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(READY) ## everything that running and testing need, in .venv

$(READY): requirements/dev.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Rekindle needs Python 3.11 to 3.13; this is %d.%d. Try: make setup PYTHON=python3.11" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements/dev.txt
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## the whole story on embedded data: adapt a small backbone, and judge it
	$(BIN)/rekindle demo --out demo-out

results-small: $(READY) ## a slice of docs/results/methods-and-frameworks.md again, on PACKS/camvid and PACKS/aerial-dubai; six minutes
	@test -d "$(PACKS)/camvid" || { echo "$(PACKS)/camvid is not there: make results-small PACKS=folder with camvid and aerial-dubai (images/{train,val}, masks/{train,val}, classes.json)"; exit 2; }
	for pack in camvid aerial-dubai; do OMP_WAIT_POLICY=passive $(BIN)/rekindle compare --grid examples/grids/tables-slice.yaml \
		--images $(PACKS)/$$pack/images/train --data $(PACKS)/$$pack --out results-small/$$pack || exit 1; done

calibrate: $(READY) ## how often the verdict is wrong, in short, and whether it keeps its limits; ten minutes
	OMP_NUM_THREADS=1 $(BIN)/rekindle study calibration --short --out calibration

gpu-check: $(READY) ## what one GPU makes of it, in ten minutes: speed, memory, kernels, resume; gpu-check.json
	$(BIN)/python scripts/gpu_check.py --out gpu-check.json

test: $(READY) ## all tests that need no GPU and end within minutes
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-all: $(READY) ## every test, the slow ones too
	$(PYTEST) $(ARGS)

torture: $(READY) ## the long harnesses of docs/reliability.md; half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.kills --count 100
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.mutants --count 1000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.configurations --count 500
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.arguments --count 2000

audit: $(READY) ## known vulnerabilities of the pinned requirements (skips offline)
	$(BIN)/python scripts/audit.py

lint: $(READY) ## ruff, import-linter, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell src tests docs scripts examples README.md CHANGELOG.md CONTRIBUTING.md

types: $(READY) ## mypy, strict
	$(BIN)/mypy

format: $(READY) ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

examples: $(READY) ## run the examples on synthetic images
	for script in examples/*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

docs: $(READY) ## run what documents and docstrings show
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.documents.run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules src/rekindle --ignore src/rekindle/bench/peers --ignore src/rekindle/__init__.py

lock: $(READY) ## pin the newest allowed versions, by hash, without naming a host
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-annotate \
		--quiet --upgrade --custom-compile-command "make lock" -o requirements/dev.txt

clean: ## remove what was built and cached, not your runs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
