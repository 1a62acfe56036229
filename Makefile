# stoplab's tasks. Each sets up what it needs; `make help` lists them.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.stoplab-ready

.DEFAULT_GOAL := help
.PHONY: help all demo test test-slow test-browser bench check format docs golden vits clean

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

all: check test ## What CI runs: check and test

demo: $(READY) ## The main job: a paired comparison through the whole local lab
	$(BIN)/stoplab demo

test: $(READY) ## The tests that fit a laptop, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY) ## The tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu and not browser"

test-browser: $(READY) ## The tests that drive a real browser (Debian's chromium)
	$(BIN)/python -m pytest -m browser

bench: $(READY) ## Run the benchmarks (on a quiet machine) and keep the results
	$(BIN)/python benchmarks/bench.py

check: $(READY) ## Lint, format, types, import floors, layout of the house
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house.py

format: $(READY) ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY) ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

golden: $(READY) ## Write the golden files anew (look at the difference before you commit it)
	$(BIN)/python -m pytest -q --golden -k golden
	$(BIN)/python -m stoplab_api.openapi > tests/golden/openapi.json

vits: $(READY) ## Write the table of timm's ViT sizes anew
	$(BIN)/python -m stoplab_trainers.vits platform/stoplab_platform/vits.json

clean: ## Remove caches and build outputs; the environment and .stoplab/ stay
	rm -rf site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# One install for all targets, again when the dependencies change.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "stoplab needs Python 3.11 or newer: none was found. Name one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "stoplab needs Python 3.11 or newer: $(PYTHON) is older."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing stoplab into $(VENV)/ (the first time: some minutes, about 7 GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@
