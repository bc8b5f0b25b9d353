# Two commands do everything on a machine that has Python 3.11+ and make:
#   make demo    every task on sample pictures with the bundled checkpoint; results in demo/
#   make test    the test suite
# All targets share .venv, which `make install` makes and keeps in step with pyproject.toml.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install test test-all lint types format demo clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18

install: $(STAMP)  ## Make .venv and install the package with its development tools

# A virtual environment whose interpreter does not start (moved, upgraded, interrupted) is made anew.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	@$(BIN)/python -c 'import pip' 2>/dev/null || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing into $(VENV) (the first time: PyTorch, about 5 GB on disk, some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 5 -e '.[dev,track,supervision,quantize,hdf5,medical]'
	@touch $@

test: $(STAMP)  ## Run the fast tests (under 15 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(STAMP)  ## Run all tests, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)  ## Check style, formatting and the floors of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)  ## Check types (strict)
	$(BIN)/mypy

format: $(STAMP)  ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)  ## Run every task on sample pictures; open demo/index.html afterwards
	$(BIN)/saccade demo --out demo

clean:  ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
