# make demo: see it work.  make test: run the tests.  make check: lint and types.
# make table: run the tests that decide what works, and write docs/capabilities.md from them.
# Each makes its own virtual environment in .venv; PYTHON chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
EXTRA ?= test
BIN = $(VENV)/bin

.PHONY: demo test table check format test-oldest clean

demo: $(VENV)/.demo
	$(BIN)/papr demo

test: $(VENV)/.$(EXTRA)
	$(BIN)/python -m pytest -n $(JOBS)

table: $(VENV)/.$(EXTRA)
	$(BIN)/python -m pytest -n $(JOBS) -m capability --capabilities=docs/capabilities.md

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The oldest versions that pyproject.toml allows, in an environment of their own.
test-oldest:
	$(MAKE) test VENV=.venv-oldest EXTRA=test-oldest CONSTRAINTS="-c constraints/oldest.txt"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo $(VENV)/.test $(VENV)/.test-oldest $(VENV)/.dev: $(VENV)/.%: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e ".[$*]"
	touch $@

clean:
	rm -rf .venv .venv-oldest
