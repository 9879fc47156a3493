# make demo: see it work.  make test: run the tests.  make check: lint and types.
# make table: run the tests that decide what works, and write docs/capabilities.md from them.
# Each makes its own virtual environment in .venv; PYTHON chooses the interpreter. Nothing newer is
# installed than constraints/tested.txt says: what worked goes on working.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
EXTRA ?= test
CONSTRAINTS ?= -c constraints/tested.txt
BETWEEN ?= timm==1.0.24 timm==1.0.27 timm==1.0.29
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-all table check format test-oldest test-between test-latest raise-bounds clean

demo: $(VENV)/.demo
	$(BIN)/papr demo

test: $(VENV)/.$(EXTRA)
	$(PYTEST)

# The exhaustive tests too: exported files of every host, not of one of each kind.
test-all: $(VENV)/.$(EXTRA)
	$(PYTEST) --all

table: $(VENV)/.$(EXTRA)
	$(PYTEST) --all -m capability --capabilities=docs/capabilities.md

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The oldest versions that pyproject.toml allows, in an environment of their own.
test-oldest:
	$(MAKE) test VENV=.venv-oldest EXTRA=test-oldest \
		CONSTRAINTS="-c constraints/oldest.txt -c constraints/tested.txt"

# Host libraries between the ends: what every host promises, on one release at a time, which lies
# before the installed one on the path.
test-between: $(VENV)/.$(EXTRA)
	for release in $(BETWEEN); do \
		$(BIN)/python -m pip install --quiet --upgrade --no-deps --target .between/$$release $$release && \
		PYTHONPATH=.between/$$release $(PYTEST) \
			tests/test_contract.py tests/test_pyramid.py tests/test_merging.py || exit 1; \
	done

# The newest releases, whatever the bounds: what is newer and what fails is reported at the end.
test-latest:
	rm -f .venv-latest/.dev
	$(MAKE) test VENV=.venv-latest EXTRA=dev CONSTRAINTS="--upgrade --upgrade-strategy eager"

# The same, lint and types too. Where all pass, those releases are the new bounds.
raise-bounds: test-latest
	$(MAKE) check VENV=.venv-latest
	.venv-latest/bin/python tests/bounds.py
	$(MAKE) table VENV=.venv-latest EXTRA=dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo $(VENV)/.test $(VENV)/.test-oldest $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints/tested.txt $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e ".[$*]"
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-latest .between
