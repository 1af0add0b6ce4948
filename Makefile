# Everything the project does, one verb each. CI calls the same verbs.
#
#   make demo      set up .venv, trace a prompt on the bundled model, say where the page is
#   make setup     .venv with everything development needs
#   make check     format, lint, types, import layers, links and examples in the docs
#   make test      the tests, on all cores; PYTEST="-n0 -k name -x" passes options on
#   make test-old  the core's tests on the oldest supported transformers, in .venv-old
#   make bench     measurements, printed and not judged; BENCH="--reference PYTHON" compares
#   make bench-gpu the rows that need a CUDA device, in one run of under ten minutes
#   make docs      redraw the generated pictures and tables, then check every link
#   make bundled   retrain the bundled model and its transcoders (about an hour)
#   make wheel     build dist/*.whl
#   make clean     remove what these verbs made

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help demo setup setup-old check test test-old bench bench-gpu docs bundled wheel clean

PYTHON ?= python3
VENV ?= .venv
VENV_OLD ?= .venv-old
PYTEST ?=
BENCH ?=
PROMPT ?= The opposite of small is
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 python -m pip install -qq
PARALLEL := -n logical --dist loadfile
OLD_TESTS ?= tests/attribution tests/loading

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than 3.10; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "could not create $(VENV); on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.runtime: pyproject.toml constraints/newest.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (torch is large; the first time takes minutes)"
	@. $(BIN)/activate && $(PIP) -c constraints/newest.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints/newest.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) with development tools (the first time takes minutes)"
	@. $(BIN)/activate && $(PIP) -c constraints/newest.txt -e ".[dev]"
	@touch $@ $(VENV)/.runtime

$(VENV_OLD)/.dev: pyproject.toml constraints/oldest.txt
	@test -x $(VENV_OLD)/bin/python || $(PYTHON) -m venv $(VENV_OLD)
	@echo "installing into $(VENV_OLD) with the oldest supported transformers"
	@. $(VENV_OLD)/bin/activate && $(PIP) -c constraints/oldest.txt -e ".[test]"
	@touch $@

demo: $(VENV)/.runtime
	@$(BIN)/trace "$(PROMPT)"

setup: $(VENV)/.dev

setup-old: $(VENV_OLD)/.dev

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q tests/house -m "not slow"

test: setup
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST)

test-old: setup-old
	$(VENV_OLD)/bin/python -m pytest $(PARALLEL) $(OLD_TESTS) $(PYTEST)

bench: setup
	$(BIN)/python tests/benchmarks/compare.py $(BENCH)

bench-gpu: setup
	$(BIN)/python kernels/bench/bench_gpu.py $(BENCH)

docs: setup
	$(BIN)/python docs/draw_layers.py
	$(BIN)/python docs/scale.py --page
	$(BIN)/python docs/draw_scale.py
	$(BIN)/python -m pytest -q tests/house/test_docs.py tests/house/test_architecture.py

bundled: setup
	$(BIN)/python -m circuit_tracer.bundled.recipe

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

clean:
	rm -rf $(VENV) $(VENV_OLD) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
