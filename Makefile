# The commands of a checkout. PYTHON (3.11 or newer) makes the environment, VENV is where it lives.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist worksteal
FIRST = notebooks/01_first_distillation.ipynb
TESTS ?= $(FIRST) tests
PEERS ?=

BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest

.DELETE_ON_ERROR:
.PHONY: help demo test check quality lint types doctest slow docs extras format clean

help:
	@echo "make demo    16 teachers, 16 small students and their controls in one compiled call, as a table"
	@echo "make test    the quick suite, and the first notebook at tiny sizes"
	@echo "make check   all that CI runs: test, lint, types, doctest, slow, docs"
	@echo "make docs    the API reference and the notebooks as pages, in build/docs"
	@echo "make extras  what needs other libraries (torch), each in its own environment; PEERS=rejax: one"
	@echo "make format  let ruff rewrite what lint would complain about"

demo: $(VENV)/.installed-base
	$(BIN)/python benchmarks/speed/headline.py CartPole-v1
	@echo "the same with a live line and a file for every seed: $(BIN)/jaxkd distill CartPole-v1"

test: $(VENV)/.installed-test
	JAXKD_TINY=1 $(PYTEST) -m "not slow" $(PYTEST_ARGS) --nbmake $(TESTS)

check: test quality slow docs

quality: lint types doctest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

doctest: $(VENV)/.installed-test
	$(PYTEST) --doctest-modules jaxkd

slow: $(VENV)/.installed-test
	$(PYTEST) -m "slow or bits" $(PYTEST_ARGS) tests
	JAXKD_TINY=1 $(PYTEST) $(PYTEST_ARGS) --nbmake $(filter-out $(FIRST),$(wildcard notebooks/*.ipynb))

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/build.py

# One short round of speed beside each; ~/.cache/jaxkd-peers keeps their environments.
extras: $(VENV)/.installed-base
	$(BIN)/python benchmarks/speed/peers.py $(PEERS) --size tiny

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

# Installed once, and again when pyproject.toml changes; the package itself is editable.
EXTRA_base =
EXTRA_test = [test]
EXTRA_dev = [dev]
EXTRA_docs = [docs]
$(VENV)/.installed-base $(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-docs: $(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".$(EXTRA_$*)"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: jaxkd needs Python 3.11 or newer, '$(PYTHON)' is not. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
