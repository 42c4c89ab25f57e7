# make demo    trace an agent into a real local MLflow; needs no key and no account
# make test    run all fast tests; the end of the output lists the skipped tests and how to run them
# Both create .venv and install what they need. They need Python 3.10 or newer. CONTRIBUTING.md lists the other targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra arguments for pytest: make test PYTEST="-k settings -x"
PYTEST ?=
# The exact versions that `make` installs, for every Python. `make lock` renews them.
CONSTRAINTS := .ci/constraints/dev.txt
# Number of test files that run at the same time. `make test WORKERS=0` runs one test at a time.
WORKERS ?= 2

.PHONY: demo test test-matrix lint format collector bench docs docs-serve dist lock command-line configuration troubleshooting conventions corpus parity screenshots clean
# Deletes a virtual environment whose creation was interrupted.
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
	PYTHONPATH=tests $(BIN)/python -m support.truth --check

format: $(VENV)/.dev
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	PYTHONPATH=tests $(BIN)/python -m support.truth

# Builds the OpenTelemetry Collector of the tests into the user's cache folder. Needs Go. The tests do it on demand.
collector: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.collector

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

# Builds the documentation site in site/. A broken link or reference is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Serves the site at http://127.0.0.1:8000, and builds it again when a page or docstring changes.
docs-serve: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Builds the sdist and the wheel in dist/. The same commit always gives the same bytes.
dist: $(VENV)/.dev
	rm -rf dist
	env -u SOURCE_DATE_EPOCH $(BIN)/python -m build --no-isolation

# Renews all versions in .ci/constraints. `make lock UPGRADE=` changes only the versions that no longer fit.
UPGRADE ?= --upgrade
COMPILE := $(BIN)/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.10 --no-python-downloads \
	--system-certs --no-annotate --custom-compile-command "make lock"
lock: $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.13"
	$(COMPILE) --extra dev --output-file $(CONSTRAINTS) pyproject.toml
	for name in $(basename $(wildcard .ci/constraints/*.in)); do \
		$(COMPILE) --output-file $$name.txt $$name.in || exit 1; done

# Generates the tables of docs/configuration.md and README.md from the settings in the code.
configuration: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.settings_page

# Generates docs/command-line.md: runs the commands with a real MLflow.
command-line: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.terminal_page

# Generates docs/troubleshooting.md from the message codes and their hints.
troubleshooting: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.troubleshooting_page

# Generates the table of docs/conventions.md from the scores of the recorded traces. Needs node.
conventions: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.corpus

# Checks what MLflow's console shows of some recorded traces: make corpus CASE='SOURCE/*'. Needs node.
CASE ?= *
corpus: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.corpus --case '$(CASE)' --way whole

# Generates the pictures and the table of docs/parity.md from MLflow's console in a browser. Needs chromium.
screenshots: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.parity

# Generates the comparison with MLflow's autolog in docs/parity.md. Needs node; installs an environment of its own.
parity: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m support.autolog

clean:
	rm -rf $(VENV) .cache .demo .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# pip reads the constraints from the environment, because it then also uses them in the isolated environment that builds
# this package. Newer releases of pip read the second variable for that.
INSTALL := PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location --editable

# These markers are newer than the files that list the packages if the packages are installed. `dev` includes `demo`.
$(VENV)/.demo: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing MLflow, LangChain and this library into $(VENV): 1 GB, one to three minutes without output, once."
	@# The demo imports a fraction of the files: compiling all of them takes half of the CPU time of the installation.
	@$(INSTALL) ".[demo]" --no-compile
	@touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing the packages for the tests into $(VENV): 1.5 GB, two to five minutes without output, once."
	@$(INSTALL) ".[dev]"
	@touch $(VENV)/.demo $@
