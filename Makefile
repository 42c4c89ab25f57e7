# make demo    an agent's trace in a real local MLflow; no key, no account
# make test    all tests that take seconds; says at its end what was left out and how to get it
# Both do all the set-up that they need, in .venv, with Python 3.10 or newer. The other goals: CONTRIBUTING.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra words for pytest: make test PYTEST="-k settings -x"
PYTEST ?=
# Files of tests that run at a time, as most of them wait for servers and processes: make test WORKERS=0 for one by one.
WORKERS ?= 2

.PHONY: demo test test-matrix lint format bench dist configuration conventions parity screenshots clean
# Also for an environment whose making was broken off.
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

test-matrix: $(VENV)/.dev
	$(BIN)/python -m pytest --matrix -m matrix $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	PYTHONPATH=tests $(BIN)/python -m support.check_names
	PYTHONPATH=tests $(BIN)/python -m support.check_words

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

# The wheel and the sdist, into dist/: from the same files the same bytes.
dist: $(VENV)/.dev
	rm -rf dist
	env -u SOURCE_DATE_EPOCH $(BIN)/python -m build --no-isolation

# The tables of docs/configuration.md, and README's, from the settings in the code.
configuration: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.settings_page

# The table of docs/conventions.md, from the score of the recorded traces; needs node.
conventions: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.corpus

# The pictures and the table of docs/parity.md, from MLflow's console in a browser; needs chromium.
screenshots: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.parity

# The comparison with MLflow's autolog in docs/parity.md; needs node, and makes an environment of its own.
parity: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.autolog

clean:
	rm -rf $(VENV) .cache .demo .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The markers are newer than pyproject.toml when what it asks for is installed. What dev installs serves the demo too.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location --editable

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Installing MLflow, LangChain and this library into $(VENV): 1 GB, one to three minutes without a word, once."
	@$(INSTALL) ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "Installing all that the tests need into $(VENV): 1.5 GB, two to five minutes without a word, once."
	@$(INSTALL) ".[dev]"
	@touch $(VENV)/.demo $@
