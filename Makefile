# Everything needs only Python and make. `make install` runs again only when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
ARGS ?=
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs
# lmms-eval cannot share tokenscale's environment: its requirements contradict those of Hydra and wandb.
LMMS := .venv-lmms
LMMS_INSTALLED := $(LMMS)/.installed
# latex2sympy2 pins ANTLR 4.7, for which pip falls back to math-verify 0.1.0, which cannot be imported. With ANTLR 4.9.3
# both can be imported; latex2sympy2 then prints that versions disagree.
MATH_VERIFY := math-verify==0.9.0 latex2sympy2-extended==1.11.0 antlr4-python3-runtime==4.9.3
CODE := m3_backbone predictor experiments tests docs

.DEFAULT_GOAL := help
.PHONY: help install run paper test test-long test-slow lmms-env lmms-test check docs notebook format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'PYTHON=python3.12 picks the interpreter of the environment; ARGS="task=easy_vqa seed=1" goes to `make run`, ARGS="-k fronts" to `make test`.'

install: $(INSTALLED) ## make .venv and install into it under the constraints

# torch is installed first, on its own: pip then takes a CPU build of the pinned version if there is one,
# instead of choosing another build for the packages that depend on it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make install PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(INSTALLED) ## label, train, measure latency and evaluate on the embedded backbone; prints the path of the report
	$(BIN)/python -m experiments.run $(ARGS)

paper: $(INSTALLED) ## most tables and figures of docs/results.md; ARGS="paper=short" for a look
	$(BIN)/python -m experiments.paper $(ARGS)

# One thread per worker, as two workers with a thread pool each would slow each other down.
test: $(INSTALLED) ## the tests, offline, on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) $(ARGS)

test-long: $(INSTALLED) ## tests of whole commands, and of every option, example and backbone family
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) -m 'long and not slow' $(ARGS)

test-slow: $(INSTALLED) ## tests that take minutes each: commands killed at random moments, flipped bits
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) -m slow $(ARGS)

lmms-env: $(LMMS_INSTALLED) ## make .venv-lmms with lmms-eval and tokenscale's library half (2.4 GB)

$(LMMS_INSTALLED): pyproject.toml constraints-lmms.txt
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --constraint constraints-lmms.txt torch
	$(LMMS)/bin/python -m pip install --quiet --constraint constraints-lmms.txt lmms-eval levenshtein --editable .
	$(LMMS)/bin/python -m pip install --quiet --no-deps $(MATH_VERIFY)
	$(LMMS)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

lmms-test: $(INSTALLED) $(LMMS_INSTALLED) ## tests with lmms-eval itself, in .venv-lmms (minutes)
	TOKENSCALE_LMMS_PYTHON=$(abspath $(LMMS)/bin/python) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m lmms tests/lmms $(ARGS)

check: $(INSTALLED) ## lint, format, types, import rules
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_imports.py

docs: $(DOCS_INSTALLED) ## the documentation site, site/index.html
	$(BIN)/python -m docs.site.pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site: $(CURDIR)/site/index.html"

notebook: $(INSTALLED) ## execute docs/tutorial.ipynb in place, after `make run`
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebook]'
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.site.notebook

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

format: $(INSTALLED) ## let ruff mend what it can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean: ## remove caches and builds; .venv and outputs/ stay
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
