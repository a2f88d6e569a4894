# voxelwise: `make demo` and `make test` do everything on a machine that has Python (3.10 or later), make and git.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := __init__.py errors.py transforms networks pipeline scripts tests

.DEFAULT_GOAL := help
# without the bytecode of its libraries a program here takes many seconds to start
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help install demo test check lint types imports tests test-slow test-gpu clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

# the environment is made once, and again when the dependencies change
$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "voxelwise needs Python 3.10 or later; set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

install: $(VENV)/installed ## the environment in .venv

demo: install ## the whole job on an archive that it makes: demo/report.html
	$(BIN)/voxelwise demo --out demo

test: install ## everything that a change must pass
	$(MAKE) --no-print-directory check

check: lint types imports tests

lint: install ## ruff: rules and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: install ## mypy, on the package under its installed name
	@mkdir -p .build && ln -sfn .. .build/voxelwise
	MYPYPATH=.build $(BIN)/mypy --package voxelwise

imports: install ## the direction of imports
	$(BIN)/python scripts/check_imports.py

tests: install ## the fast tests
	$(BIN)/pytest -q

test-slow: install ## what takes minutes
	$(BIN)/pytest -q -m "slow and not gpu" --timeout 3600

test-gpu: install ## what needs a CUDA device
	$(BIN)/pytest -q -m gpu --timeout 3600

clean: ## remove the environment and what tools left
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
